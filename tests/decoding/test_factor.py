"""factor against spec B2 (dynamic factor), written with loops."""

import pytest

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.factor import Factor

RULE = Factor()


def by_hand(row: Row) -> set[int]:
    """The source's scan, with its 0-based index and its correction at both ends."""
    order = row.surest_first
    masks = len(order)
    if not masks:
        return set()
    bounds = [-1.0] + [1 - row.factor / (n + 1) for n in range(2, masks + 1)]
    index = masks - 1
    for rank in range(masks):
        if row.confidence[order[rank]] < bounds[rank]:
            index = rank
            break
    if index in (0, masks - 1):
        index += 1
    return set(order[:index])


def test_the_scan_of_the_source_stops_at_the_same_place() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


@pytest.mark.parametrize(
    ("confidence", "taken"),
    [
        # Bounds for a factor of 1: none, 2/3, 3/4, 4/5.
        ([0.1], {0}),
        ([0.9, 0.5], {0, 1}),  # the last one fails, and is taken all the same
        ([0.9, 0.5, 0.4], {0}),
        ([0.9, 0.7, 0.4], {0, 1, 2}),
        ([0.9, 0.7, 0.7, 0.1], {0, 1}),
        ([0.9, 0.7, 0.75, 0.1], {0, 2}),
        ([0.9, 0.8, 0.76, 0.1], {0, 1, 2, 3}),
        ([0.9, 0.8, 0.76, 0.1, 0.1], {0, 1, 2}),
        ([0.1, 0.1, 0.1, 0.1], {0}),
    ],
)
def test_examples(confidence: list[float], taken: set[int]) -> None:
    """Loop and rule could share a misreading."""
    assert written(RULE, uniform_row(confidence)) == [taken]


def test_a_confidence_equal_to_its_bound_passes() -> None:
    """The source compares with `<`."""
    row = uniform_row([1.0, 0.5, 0.1, 0.1], factor=1.5)
    assert written(RULE, row) == [{0, 1}]
