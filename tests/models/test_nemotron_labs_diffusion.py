"""Nemotron-Labs-Diffusion's config.json, weights and defaults."""

from pathlib import Path

import pytest
from safetensors import safe_open

from tests.checkpoints import derived
from tests.engine_config import engine_config, resolved
from tests.golden_cases import GOLDEN
from vllm_dllm.models.nemotron_labs_diffusion import (
    RELEASED_NAMES,
    NemotronLabsDiffusionModel,
)
from vllm_dllm.request import resolve

BASE = "nemotron-pub0"


def test_queries_grow_with_their_position_as_the_config_says() -> None:
    """vLLM's layers look elsewhere for it, and leave it out where it is not found."""
    config = engine_config(BASE).model_config.hf_config
    assert config.llama_4_scaling == {
        "beta": 0.1,
        "original_max_position_embeddings": 64,
    }
    assert config.rope_parameters["rope_type"] == "yarn"
    # With both of them vLLM leaves the angles' sines as they are.
    assert config.rope_parameters["mscale"] == config.rope_parameters["mscale_all_dim"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("dlm_paradigm", "autoregressive"), ("mlp_bias", True), ("hidden_act", "gelu")],
)
def test_another_variant_is_refused(tmp_path: Path, field: str, value: object) -> None:
    """It would be served as if it were the released one."""
    folder = derived(tmp_path / "model", BASE, **{field: value})
    with pytest.raises(ValueError, match=f"config.json: {field}={value!r}"):
        engine_config(folder)


def test_released_names_lead_to_vllms_and_back() -> None:
    """A message would name a tensor that no checkpoint has."""
    with safe_open(GOLDEN / BASE / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
    ours = [name for name, _ in RELEASED_NAMES.apply((n, None) for n in names)]
    assert all(name.startswith(("model.", "lm_head.")) for name in ours)
    back = [NemotronLabsDiffusionModel.released_name(name) for name in ours]
    assert back == names


def test_without_a_word_the_authors_rule_decodes() -> None:
    """One line starts a server; what else it would need, nobody knows to say."""
    config = resolved(BASE)
    decoding = resolve(None, config, 100)
    assert (decoding.algorithm, decoding.block_length) == ("confidence_threshold", 32)
    assert decoding.parameters == {"threshold": 0.9}
    model_config = engine_config(BASE).model_config
    assert model_config.get_diff_sampling_param()["temperature"] == 0.0


def test_linear_spec_is_for_this_model_alone() -> None:
    """Other models have no row that predicts the next token."""
    own = {"dllm_algorithm": "linear_spec", "dllm_block_length": 16}
    for follows_grammar in (False, True):
        decoding = resolve(own, resolved(BASE), 100, follows_grammar)
        assert (decoding.algorithm, decoding.block_length) == ("linear_spec", 1)
    with pytest.raises(ValueError, match="'linear_spec' is for causal models"):
        resolve({"dllm_algorithm": "linear_spec"}, resolved("sdar-pub0"), 100)
