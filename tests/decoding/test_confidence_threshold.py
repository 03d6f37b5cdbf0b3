"""confidence_threshold against Fast-dLLM's threshold, written with loops."""

import pytest

from tests.decoding.canvas_steps import BATCHES, NAN, Row, uniform_row, written
from vllm_dllm.decoding.confidence_threshold import ConfidenceThreshold

RULE = ConfidenceThreshold()


def by_hand(row: Row) -> set[int]:
    sure = {c for c in row.masks if row.confidence[c] >= row.threshold}
    return sure | set(row.surest_first[:1])


def test_all_sure_positions_and_the_surest_are_taken() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_a_confidence_equal_to_the_threshold_is_enough() -> None:
    """`>` is LLaDA2's comparison, and leaves tokens that Fast-dLLM takes."""
    row = uniform_row([0.5, 0.75, 0.5, 0.25], threshold=0.5)
    assert written(RULE, row) == [{0, 1, 2}]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_have_no_part_in_it(steps: int) -> None:
    """A quota would force tokens on the model that it is not sure of."""
    row = uniform_row([0.5, 0.75, 0.5, 0.25], steps=steps, step=9, threshold=1.0)
    assert written(RULE, row) == [{1}]


def test_a_threshold_of_zero_decodes_the_block_at_once() -> None:
    """The fastest setting would silently be a slower one."""
    row = uniform_row([0.01, 0.0, 0.03, 0.04], threshold=0.0)
    assert written(RULE, row) == [{0, 1, 2, 3}]


def test_sure_candidates_of_decoded_positions_are_not_taken() -> None:
    """Prompt tails and decoded tokens would be overwritten."""
    masked = [False, False, True, True]
    row = uniform_row([0.99, NAN, 0.6, 0.2], masked=masked, threshold=0.9)
    assert written(RULE, row) == [{2}]
