"""random against spec B1 (`remasking="random"`), written with loops."""

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.random_positions import RandomPositions

RULE = RandomPositions()


def by_hand(row: Row) -> set[int]:
    return set(row.highest_first(row.noise)[: row.quota])


def test_the_highest_noise_fills_the_quota() -> None:
    """Another choice is not the one that the seed stands for."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_confidence_changes_nothing() -> None:
    """The order would not be random."""
    row = uniform_row([1.0, 0.9, 0.1, 0.0], steps=2, noise=[0.1, 0.2, 0.3, 0.4])
    assert written(RULE, row) == [{2, 3}]
