"""Requests for AdaBlock: what they may ask for, and what their steps forward."""

from typing import Any

import pytest

from tests.wishes import CONFIG, FULL, WHOLE, with_grammar
from vllm_dllm.admission import check_sampling_params
from vllm_dllm.config import DllmConfig
from vllm_dllm.plans.adaptive import Adaptive
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.plans.grid import Grid
from vllm_dllm.request import plan_of, resolve, wishes_of

ASKED = {
    "dllm_algorithm": "adablock",
    "dllm_delimiter_ids": [7, 9],
    "dllm_delimiter_threshold": 0.3,
}


def plan(max_tokens: int, config: DllmConfig = FULL, **changed: Any) -> Plan:
    fields = {**ASKED, **{f"dllm_{name}": value for name, value in changed.items()}}
    decoding = resolve(fields, config, max_tokens)
    return plan_of(decoding, config, 10, max_tokens)


def test_a_quarter_of_the_answer_is_searched() -> None:
    """Another window finds other delimiters than the authors' code."""
    found = {tokens: plan(tokens, block_length=8) for tokens in (3, 40, 41, 43, 44)}
    for tokens, window in ((3, 0), (40, 10), (41, 10), (43, 10), (44, 11)):
        grid = Grid(10, min(tokens, max(8, window)), 10 + tokens)
        assert found[tokens] == Adaptive(grid, "none", 0, 0, 8, window)


def test_without_delimiters_all_blocks_have_the_default_length() -> None:
    """The authors' switch for fixed blocks; either of the two fields is one."""
    fixed = Adaptive(Grid(10, 32, 90), "none", 0, 0, 32, 0)
    assert plan(80, delimiter_ids=[]) == fixed
    assert plan(80, delimiter_threshold=None) == fixed
    assert plan(80, WHOLE, delimiter_ids=[]) == fixed  # without a default of its own


def test_the_text_goes_on_right_behind_a_gap() -> None:
    """Masks between the two would be text that nobody is shown."""
    guided = plan(40, cache="dual", suffix_token_ids=[5] * 9, cfg_scale=0.5)
    assert guided == Adaptive(Grid(10, 32, 50), "dual", 64, 9, 32, 10)


@pytest.mark.parametrize(
    ("config", "changed", "message"),
    [
        (CONFIG, {}, "dllm_algorithm='adablock' is for models with full attention"),
        (FULL, {"algorithm": "threshold"}, r"dllm_delimiter_ids=\[7, 9\] has no"),
        (FULL, {"delimiter_ids": [-1]}, "delimiter_ids.*greater than or equal to 0"),
        (FULL, {"delimiter_ids": "7"}, "dllm_delimiter_ids='7'.*valid list"),
        (FULL, {"delimiter_ids": [1] * 257}, "dllm_delimiter_ids.*at most 256 items"),
        (FULL, {"delimiter_threshold": 1.5}, "dllm_delimiter_threshold=1.5.*0 to 1"),
        (FULL, {"steps": 4}, "dllm_steps=4 has no meaning.*'adablock', which uses"),
        (FULL, {"buffer_size": 2}, "dllm_buffer_size=2"),
    ],
)
def test_what_has_no_meaning_is_refused(
    config: DllmConfig, changed: dict[str, Any], message: str
) -> None:
    """A user would tune a number that nothing reads, or end the engine."""
    own = {**ASKED, **{f"dllm_{name}": value for name, value in changed.items()}}
    with pytest.raises(ValueError, match=message):
        wishes_of(own, config)


def test_a_delimiter_that_is_in_no_vocabulary_is_refused() -> None:
    """It would never be found, and nobody would know why."""
    config = FULL.with_facts(FULL.facts.model_copy(update={"vocab_size": 9}))
    with pytest.raises(ValueError, match=r"dllm_delimiter_ids: 9 .* allowed: 0 to 8"):
        wishes_of(ASKED, config)


def test_a_grammar_is_not_followed_in_such_blocks() -> None:
    """Whatever ends a block there is written from left to right, and may end none."""
    check_sampling_params(with_grammar(**ASKED), FULL)
    server = FULL.model_copy(update={"algorithm": "adablock", "delimiter_ids": [7]})
    check_sampling_params(with_grammar(), server)
    for own, config in ((ASKED, FULL), (None, server)):
        decoding = resolve(own, config, 20, follows_grammar=True)
        assert decoding.algorithm == "confidence_threshold"
        assert isinstance(plan_of(decoding, config, 10, 20), FullAttention)
