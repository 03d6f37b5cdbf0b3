"""threshold against spec B4 (2.0) and B5 (dynamic), written with loops."""

import pytest

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.threshold import Threshold

RULE = Threshold()


def by_hand(row: Row) -> set[int]:
    above = [c for c in row.masks if row.confidence[c] > row.threshold]
    return set(above if len(above) >= row.quota else row.surest_first[: row.quota])


def test_all_sure_positions_or_the_quota_are_taken() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_a_confidence_equal_to_the_threshold_is_not_above_it() -> None:
    """`>=` would take tokens that LLaDA2 and SDAR leave for a later step."""
    row = uniform_row([0.5, 0.75, 0.5, 0.25], threshold=0.5)
    assert written(RULE, row) == [{1}]


@pytest.mark.parametrize("threshold", [1.0, 0.99])
def test_with_nothing_above_the_threshold_the_surest_are_taken(
    threshold: float,
) -> None:
    """A step that takes nothing is repeated for ever."""
    row = uniform_row([0.5, 0.75, 0.5, 0.25], steps=2, threshold=threshold)
    assert written(RULE, row) == [{0, 1}]


def test_a_threshold_of_zero_decodes_the_block_at_once() -> None:
    """The fastest setting would silently be a slower one."""
    row = uniform_row([0.01, 0.02, 0.03, 0.04], threshold=0.0)
    assert written(RULE, row) == [{0, 1, 2, 3}]


def test_positions_with_final_tokens_are_not_taken_again() -> None:
    """Prompt tails and decoded tokens would be overwritten by sure candidates."""
    row = uniform_row([0.99, 0.99, 0.99, 0.6], masked=[False, False, True, True])
    assert written(RULE, row) == [{2, 3}]
