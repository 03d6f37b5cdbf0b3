"""sequential against spec B5, written with loops."""

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.sequential import Sequential

RULE = Sequential()


def by_hand(row: Row) -> set[int]:
    return set(row.masks[: row.quota])


def test_the_leftmost_masks_fill_the_quota() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_confidence_changes_nothing() -> None:
    """A sure token far right would be taken before its left context is there."""
    row = uniform_row([0.1, 0.2, 0.3, 1.0], steps=2, threshold=0.0)
    assert written(RULE, row) == [{0, 1}]


def test_a_prompt_tail_is_stepped_over() -> None:
    """Counting its columns would leave a step with nothing to take."""
    row = uniform_row([0.5] * 4, masked=[False, False, True, True], steps=2)
    assert written(RULE, row) == [{2, 3}]
