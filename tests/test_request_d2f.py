"""D2F that a request asks for, or its server."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from tests.wishes import CONFIG, FULL, WHOLE, with_grammar
from vllm_dllm.admission import check_length, check_sampling_params
from vllm_dllm.config import DllmConfig
from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.plans.grid import Grid
from vllm_dllm.request import plan_of, resolve, wishes_of

D2F = {"dllm_algorithm": "d2f"}
SERVER = DllmConfig.build(FULL.model_dump(), {"algorithm": "d2f"}, facts=FULL.facts)
"""One whose own rule it is."""


def plan(own: dict[str, Any] | None, config: DllmConfig = FULL) -> Plan:
    """That of a prompt of 9 tokens and an answer of 20."""
    return plan_of(resolve(own, config, 20), config, 9, 20)


def test_a_rule_brings_its_plan() -> None:
    """A D2F adapter without its attention answers nonsense, and so does any other model
    with it."""
    assert plan(D2F | {"dllm_block_length": 8}) == AfterPrompt(Grid(9, 8, 33))
    assert isinstance(plan({"dllm_algorithm": "threshold"}), FullAttention)
    assert isinstance(plan(None, SERVER), AfterPrompt)
    assert isinstance(plan({"dllm_algorithm": "threshold"}, SERVER), FullAttention)


def test_shifted_logits_repeat_the_position_before_a_block() -> None:
    """No other row of a step predicts its first position."""
    facts = FULL.facts.model_copy(update={"shifted_logits": True})
    assert plan(D2F, FULL.with_facts(facts)) == AfterPrompt(Grid(9, 32, 41), repeats=1)


@pytest.mark.parametrize(
    ("own", "config", "block"),
    [
        ({}, FULL, 32),
        ({}, WHOLE, 32),
        ({"dllm_block_length": 16}, WHOLE, 16),
        ({"dllm_block_length": 180}, FULL, 180),  # no shorter for a short answer
        ({"dllm_block_length": 200}, FULL, 191),  # max_model_len
    ],
)
def test_a_block_is_as_long_as_asked(
    own: dict[str, Any], config: DllmConfig, block: int
) -> None:
    """How many masks a block has is part of what the model sees."""
    assert plan(D2F | own, config).grid.block == block


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cache", "none"),
        ("cache", "dual"),
        ("cfg_scale", 1.5),
        ("suffix_token_ids", [5]),
        ("steps", 4),
        ("token_stability_threshold", 0.5),
        ("edit_threshold", 0.5),
    ],
)
def test_what_has_no_meaning_is_refused(field: str, value: Any) -> None:
    """A field that is accepted and ignored gives wrong answers."""
    refused = rf"dllm_{field}=.* has no meaning for the decoding rule 'd2f'"
    with pytest.raises(ValueError, match=refused):
        wishes_of(D2F | {f"dllm_{field}": value}, FULL)


@pytest.mark.parametrize("size", [1, 4])
def test_a_number_of_blocks_is_refused(size: int) -> None:
    """D2F has no limit of them: another number would be another decoder."""
    with pytest.raises(ValueError, match=f"dllm_buffer_size={size} is not for d2f"):
        wishes_of(D2F | {"dllm_buffer_size": size}, FULL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", 1.1),
        ("add_block_threshold", 0),
        ("semi_complete_threshold", 1.5),
        ("block_length", 0),
        ("block_length", 201),
    ],
)
def test_what_is_out_of_range_is_refused(field: str, value: Any) -> None:
    """No block would open, or none be decoded."""
    with pytest.raises(ValueError, match=rf"dllm_{field}={value}.*allowed"):
        wishes_of(D2F | {f"dllm_{field}": value}, FULL)


def test_what_is_off_may_be_said_to_be() -> None:
    """Clients of other servers send their switches with every request."""
    off = {"dllm_cfg_scale": 0.0, "dllm_suffix_token_ids": [], "dllm_max_nfe": 3}
    assert wishes_of(D2F | off, FULL).algorithm == "d2f"


def test_other_models_refuse_it() -> None:
    """Their blocks lie on another grid."""
    with pytest.raises(ValueError, match="'d2f' is for models with full attention"):
        wishes_of(D2F, CONFIG)


def test_defaults_of_others_have_no_effect() -> None:
    """A server's cache, or its stability of buffers, would change the answer."""
    others = {"cache": "dual", "token_stability_threshold": 0.5}
    config = DllmConfig.build(FULL.model_dump(), others, facts=FULL.facts)
    decoding = resolve(D2F, config, 20)
    assert decoding.token_stability_threshold == 0
    assert isinstance(plan(D2F, config), AfterPrompt)


def test_structured_output_takes_one_block_of_full_attention() -> None:
    """A grammar knows nothing of blocks behind a mask."""
    check_sampling_params(with_grammar(), SERVER)
    check_sampling_params(with_grammar(**D2F), FULL)
    for own, config in ((None, SERVER), (D2F, FULL)):
        decoding = resolve(own, config, 20, follows_grammar=True)
        assert decoding.algorithm == "confidence_threshold"
        assert isinstance(plan_of(decoding, config, 9, 20), FullAttention)


@pytest.mark.parametrize("max_tokens", [96, 128])
def test_a_request_that_no_forward_holds_is_refused(max_tokens: int) -> None:
    """It would wait for ever: its prompt is forwarded with all of its blocks."""
    params = SamplingParams(max_tokens=max_tokens, extra_args=D2F)
    if max_tokens == 96:
        check_length(params, FULL, 54)
        return
    refused = r"54 tokens.*128 tokens.*182 tokens.*150 \(max_num_batched_tokens\)"
    with pytest.raises(ValueError, match=refused):
        check_length(params, FULL, 54)
