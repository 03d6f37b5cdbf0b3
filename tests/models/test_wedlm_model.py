"""WeDLM on Qwen2 against its reference; the golden checkpoint is one on Qwen3."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoints import derived
from tests.engine_config import engine_config, resolved
from tests.engines import OneAtATime
from tests.golden_cases import GOLDEN, differences, golden_cases
from tests.reference.wedlm import WeDLM, WeDLMConfig
from tests.specs import EngineSpec
from vllm_dllm.models.configs import WeDLMConfig as HFConfig

QWEN2 = {"attention_bias": True, "qk_norm": False}


def weights_of_qwen2() -> dict[str, Tensor]:
    """The golden checkpoint's, with biases in place of norms."""
    golden = WeDLM.from_pretrained(GOLDEN / "wedlm-pub0")
    fields = {**vars(golden.config), **QWEN2}
    weights = WeDLM(WeDLMConfig(**fields)).state_dict()
    own, generator = golden.state_dict(), torch.Generator().manual_seed(3)
    return {
        name: own.get(name, torch.randn(weight.shape, generator=generator) * 0.3)
        for name, weight in weights.items()
    }


@pytest.mark.engine
def test_a_checkpoint_on_qwen2_answers_as_the_reference(
    running: OneAtATime, tmp_path: Path
) -> None:
    """A norm that is not in the checkpoint, or a bias that is left out."""
    folder = derived(tmp_path / "model", "wedlm-pub0", weights_of_qwen2(), **QWEN2)
    model = WeDLM.from_pretrained(folder)
    plain = golden_cases("wedlm-pub0")[::3]
    cases = [
        replace(case.answered(model), checkpoint=case.checkpoint) for case in plain
    ]
    assert differences(plain, [case.tokens for case in cases]), "the biases do nothing"
    engine = running.engine(EngineSpec(str(folder)))
    assert differences(cases, engine.answers(cases)) == []


def test_a_config_that_does_not_say_is_of_qwen2() -> None:
    """The authors' class has these defaults."""
    config = HFConfig()
    assert (config.attention_bias, config.qk_norm) == (True, False)


def test_an_engine_decodes_as_the_authors_and_in_causal_rows() -> None:
    """Rows without a causal mask would let known tokens see masks."""
    config = resolved("wedlm-pub0")
    assert (config.algorithm, config.block_size) == ("wedlm", 16)
    assert (config.entropy_threshold, config.pos_penalty_factor) == (0.4, 0.02)
    vllm_config = engine_config("wedlm-pub0")
    assert not vllm_config.attention_config.use_non_causal
    assert vllm_config.cache_config.enable_prefix_caching
    generation = vllm_config.model_config.get_diff_sampling_param()
    assert generation["temperature"] == 0.2


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"algorithm": "credit"}, "dllm.algorithm='credit' is not defined in a window"),
        ({"cache": "dual"}, "dllm.cache='dual' has no meaning without full attention"),
        ({"buffer_size": 2}, "dllm.buffer_size=2"),
        ({"block_size": 4096}, "is less than 4096, the window"),
    ],
)
def test_a_default_that_no_request_could_have_is_refused(
    own: dict[str, object], reason: str
) -> None:
    """Every request without a wish of its own would be a 400."""
    with pytest.raises(ValueError, match=reason):
        engine_config(
            "wedlm-pub0", additional_config={"dllm": own}, max_num_batched_tokens=2048
        )
