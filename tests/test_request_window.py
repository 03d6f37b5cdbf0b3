"""Requests to a model whose window slides: what they may wish, and what is refused."""

import re
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from tests.wishes import CONFIG, FULL, with_grammar
from vllm_dllm.admission import check_length, check_sampling_params
from vllm_dllm.config import DllmConfig
from vllm_dllm.models.registry import FAMILIES
from vllm_dllm.plans.grid import Sliding
from vllm_dllm.plans.window import Window
from vllm_dllm.request import plan_of, resolve, wishes_of

FAMILY = FAMILIES["WeDLMForCausalLM"]
FACTS = FAMILY.facts.model_copy(
    update={"max_model_len": 200, "max_num_batched_tokens": 64, "vocab_size": 256}
)
WEDLM = DllmConfig.build(FAMILY.defaults, {"mask_token_id": 255}, facts=FACTS)


def test_without_a_wish_a_request_is_decoded_as_by_the_authors() -> None:
    """A default of another family would be slower, or worse."""
    decoding = resolve(None, WEDLM, 40)
    assert decoding.algorithm == "wedlm" and decoding.block_length == 16
    authors = {"entropy_threshold": 0.4, "pos_penalty_factor": 0.02}
    assert decoding.parameters == authors
    assert plan_of(decoding, WEDLM, 7, 40) == Window(Sliding(0, 16, 200))


def test_a_request_chooses_its_window_and_its_rule() -> None:
    """Fields that are read nowhere would be accepted."""
    own: dict[str, Any] = {"dllm_window": 5, "dllm_entropy_threshold": 1.5}
    decoding = resolve(own, WEDLM, 40)
    assert decoding.block_length == 5
    assert decoding.parameters["entropy_threshold"] == 1.5
    # The authors' word for one position per step.
    none = resolve({"dllm_entropy_threshold": None}, WEDLM, 40)
    assert none.parameters["entropy_threshold"] == 0
    # With blocks the rule works as well.
    assert resolve({"dllm_algorithm": "wedlm"}, CONFIG, 40).algorithm == "wedlm"


def test_structured_output_has_the_rules_of_a_window() -> None:
    """A rule that counts the steps of a block would end the engine there."""
    check_sampling_params(with_grammar(), WEDLM)
    decoding = resolve(None, WEDLM, 40, follows_grammar=True)
    assert (decoding.algorithm, decoding.in_runs) == ("wedlm", True)
    own = {"dllm_algorithm": "sequential"}
    decoding = resolve(own, WEDLM, 40, follows_grammar=True)
    assert (decoding.algorithm, decoding.in_runs) == ("leftmost", False)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"window": 0}, "dllm_window=0: .*allowed: 1 to 1,000,000"),
        ({"window": 1.5}, "dllm_window=1.5"),
        ({"entropy_threshold": -1}, "dllm_entropy_threshold=-1: .*allowed: 0 to"),
        ({"pos_penalty_factor": -1}, "dllm_pos_penalty_factor=-1: .*allowed: 0 to"),
        ({"steps": 4}, "dllm_steps=4 has no meaning for .*'wedlm'"),
        ({"algorithm": "sequential", "steps": 4}, "dllm_steps=4 has no meaning for"),
        ({"block_length": 8}, "dllm_block_length=8 has no meaning .*dllm_window"),
        ({"cache": "dual"}, "dllm_cache='dual' is for models with full attention"),
        ({"cfg_scale": 1.0}, "dllm_cfg_scale=1.0 is for models with full"),
        ({"buffer_size": 2}, "dllm_buffer_size=2 is not for this model"),
        ({"algorithm": "credit"}, "dllm_algorithm='credit' is not defined in a window"),
        ({"algorithm": "d2f"}, "dllm_algorithm='d2f' is for"),
    ],
)
def test_what_has_no_meaning_in_a_window_is_refused(
    fields: dict[str, Any], reason: str
) -> None:
    """It would be dropped without a word, or end the engine."""
    with pytest.raises(ValueError) as failure:
        wishes_of({f"dllm_{name}": value for name, value in fields.items()}, WEDLM)
    assert re.search(reason, str(failure.value)), failure.value


@pytest.mark.parametrize("config", [CONFIG, FULL])
def test_a_window_is_refused_where_there_are_blocks(config: DllmConfig) -> None:
    """A client would believe that it looks ahead further than it does."""
    with pytest.raises(ValueError, match="dllm_window=16 is for WeDLM's window"):
        wishes_of({"dllm_window": 16}, config)


def test_a_window_that_no_forward_holds_is_refused() -> None:
    """It would wait for ever."""
    params = SamplingParams(max_tokens=10, extra_args={"dllm_window": 64})
    check_length(params, WEDLM, 100)
    params.extra_args["dllm_window"] = 65
    with pytest.raises(ValueError, match=r"dllm_window=65 .*1 to 64 \(max_num_batched"):
        check_length(params, WEDLM, 100)
