"""entropy_bounded against spec B5 (the intended form), written with loops."""

from bisect import bisect_left
from itertools import accumulate

import pytest

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.entropy_bounded import EntropyBounded

RULE = EntropyBounded()


def by_hand(row: Row) -> set[int]:
    """k = searchsorted_left(cumsum of the rising entropies, bound), at least 1."""
    lowest_first = sorted(row.masks, key=lambda column: (row.entropy[column], column))
    sums = list(accumulate(row.entropy[column] for column in lowest_first))
    return set(lowest_first[: max(1, bisect_left(sums, row.entropy_bound))])


def test_the_lowest_entropies_are_taken_up_to_the_bound() -> None:
    """Another choice decodes other tokens than JetEngine."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


@pytest.mark.parametrize(
    ("bound", "taken"),
    [
        (0.0, {2}),  # nothing is below it: the lowest alone
        (0.125, {2}),
        (0.375, {2}),  # a sum equal to the bound is not below it
        (0.376, {0, 2}),
        (1.375, {0, 2}),
        (1.376, {0, 1, 2}),
        (100.0, {0, 1, 2}),
    ],
)
def test_the_sum_counts_and_not_each_entropy(bound: float, taken: set[int]) -> None:
    """Many middling positions at once are what the bound is to prevent."""
    row = uniform_row([0.5] * 3, entropy=[0.25, 1.0, 0.125], entropy_bound=bound)
    assert written(RULE, row) == [taken]
