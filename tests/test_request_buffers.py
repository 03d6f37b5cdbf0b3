"""Blocks in flight that a request asks for, or its server."""

from typing import Any

import pytest

from tests.wishes import CONFIG, FULL, with_grammar
from vllm_dllm.admission import check_sampling_params
from vllm_dllm.config import DllmConfig
from vllm_dllm.decoding.registry import BUFFERED, OF_BUFFERS, RULES, get_rule
from vllm_dllm.models.capacity import refuse_idle_buffer
from vllm_dllm.params import MAX_BUFFER_SIZE
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.buffered import Buffered
from vllm_dllm.request import plan_of, resolve, wishes_of

SEVERAL = DllmConfig.build(CONFIG.model_dump(), {"buffer_size": 3})
"""A server of which several blocks are the default."""


@pytest.mark.parametrize("rule", BUFFERED)
def test_rules_of_buffers_are_asked_for_by_their_own_names(rule: str) -> None:
    """A client names the rule that it knows, and how many blocks."""
    decoding = resolve({"dllm_algorithm": rule, "dllm_buffer_size": 2}, CONFIG, 20)
    assert decoding.algorithm == BUFFERED[rule] in OF_BUFFERS
    assert resolve({"dllm_algorithm": rule}, CONFIG, 20).algorithm == rule


@pytest.mark.parametrize("name", OF_BUFFERS)
def test_what_a_rule_is_with_buffers_is_no_name(name: str) -> None:
    """With one block it would be asked about a block before it that is not there."""
    with pytest.raises(ValueError, match="unknown decoding rule"):
        wishes_of({"dllm_algorithm": name}, CONFIG)


@pytest.mark.parametrize("rule", sorted(RULES.keys() - BUFFERED.keys()))
def test_rules_of_one_block_refuse_several(rule: str) -> None:
    """Its quotas are those of one block: what came out would be called by its name."""
    with pytest.raises(ValueError) as failure:
        wishes_of({"dllm_algorithm": rule, "dllm_buffer_size": 2}, CONFIG)
    assert f"dllm_buffer_size=2 is not defined for the decoding rule {rule!r}" in str(
        failure.value
    )
    assert "allowed: threshold, joint_threshold" in str(failure.value)
    # The server's own default gives way.
    if "moves" not in get_rule(rule).needs:
        assert resolve({"dllm_algorithm": rule}, SEVERAL, 20).buffer_size == 1


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "size"),
    [(8, 8, 2), (7, 1, 2), (7, 2, 2), (15, 18, 4), (16, 300, 16)],
)
def test_a_buffer_is_no_longer_than_the_answer(
    prompt: int, max_tokens: int, size: int
) -> None:
    """Tables and rows of the worker would be made for blocks that never open."""
    decoding = resolve({"dllm_buffer_size": 16}, CONFIG, max_tokens)
    plan = plan_of(decoding, CONFIG, prompt, max_tokens)
    assert isinstance(plan, Buffered) and plan.size == size


def test_a_default_of_several_blocks_is_that_of_requests() -> None:
    """A flag that changes nothing is found out late."""
    assert resolve(None, SEVERAL, 20).buffer_size == 3
    assert resolve({"dllm_buffer_size": 1}, SEVERAL, 20).buffer_size == 1
    assert isinstance(plan_of(resolve(None, SEVERAL, 20), SEVERAL, 5, 20), Buffered)
    assert isinstance(plan_of(resolve(None, CONFIG, 20), CONFIG, 5, 20), BlockCausal)


def test_structured_output_takes_one_block() -> None:
    """A grammar knows what follows a token that is written, or assumed right behind
    one. A default of the server or of a client must not turn the request into an
    error."""
    check_sampling_params(with_grammar(), SEVERAL)
    assert resolve(None, SEVERAL, 20, follows_grammar=True).buffer_size == 1
    own = {"dllm_buffer_size": 2}
    check_sampling_params(with_grammar(**own), CONFIG)
    decoding = resolve(own, CONFIG, 20, follows_grammar=True)
    assert (decoding.buffer_size, decoding.algorithm) == (1, "threshold")


@pytest.mark.parametrize(
    "own",
    [
        {"dllm_add_block_threshold": 0.5},
        {"dllm_semi_complete_threshold": 0.5, "dllm_buffer_size": 1},
        {"dllm_token_stability_threshold": 0.5},
    ],
)
def test_thresholds_of_a_buffer_want_one(own: dict[str, Any]) -> None:
    """A field that is accepted and ignored gives wrong answers."""
    with pytest.raises(ValueError, match="has no meaning with dllm_buffer_size=1"):
        wishes_of(own, CONFIG)
    wishes_of({**own, "dllm_buffer_size": 2}, CONFIG)
    if "dllm_buffer_size" not in own:
        wishes_of(own, SEVERAL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("buffer_size", 0),
        ("buffer_size", MAX_BUFFER_SIZE + 1),
        ("buffer_size", 2.5),
        ("add_block_threshold", 0),
        ("add_block_threshold", 1.1),
        ("semi_complete_threshold", 0),
        ("semi_complete_threshold", 1.1),
        ("token_stability_threshold", -0.1),
        ("token_stability_threshold", 1.1),
    ],
)
def test_a_buffer_out_of_range_is_refused(field: str, value: Any) -> None:
    """A share above 1 is never reached: no block would open, or none be decoded."""
    own = {"dllm_buffer_size": 2, f"dllm_{field}": value}
    with pytest.raises(ValueError, match=rf"dllm_{field}={value}"):
        wishes_of(own, CONFIG)


def test_full_attention_has_no_buffer() -> None:
    """Its blocks see what follows them."""
    with pytest.raises(ValueError, match="dllm_buffer_size=2 is not for this model"):
        wishes_of({"dllm_buffer_size": 2}, FULL)
    wishes_of({"dllm_buffer_size": 1}, FULL)


def test_a_default_that_no_request_could_have_is_refused_at_the_start() -> None:
    """Every request would have one block, and nobody would know."""
    refuse_idle_buffer(SEVERAL)
    refuse_idle_buffer(FULL)
    own = {"buffer_size": 2, "algorithm": "sequential"}
    with pytest.raises(ValueError, match=r"buffer_size=2 is not .*'sequential', the"):
        refuse_idle_buffer(DllmConfig.build(CONFIG.model_dump(), own))
    full = FULL.model_copy(update={"buffer_size": 2}).with_facts(FULL.facts)
    with pytest.raises(ValueError, match="buffer_size=2 is not for this model"):
        refuse_idle_buffer(full)
