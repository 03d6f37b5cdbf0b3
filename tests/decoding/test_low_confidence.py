"""low_confidence against spec B1 and B5 (static), written with loops."""

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.low_confidence import LowConfidence

RULE = LowConfidence()


def by_hand(row: Row) -> set[int]:
    return set(row.surest_first[: row.quota])


def test_the_surest_positions_fill_the_quota() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_a_threshold_changes_nothing() -> None:
    """The static rule would turn into the dynamic one."""
    sure = [0.9, 0.99, 0.95, 0.97]
    for threshold in (0.0, 1.0):
        row = uniform_row(sure, steps=2, threshold=threshold)
        assert written(RULE, row) == [{1, 3}]


def test_uneven_steps_take_more_at_first() -> None:
    """7 tokens in 3 steps are 3, 2, 2; any other order differs from the authors'."""
    left = [True] * 7
    taken = []
    for step in range(3):
        row = uniform_row([0.1 * c for c in range(7)], masked=left, step=step, steps=3)
        (chosen,) = written(RULE, row)
        left = [masked and c not in chosen for c, masked in enumerate(left)]
        taken.append(chosen)
    assert taken == [{4, 5, 6}, {2, 3}, {0, 1}]
