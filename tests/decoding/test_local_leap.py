"""local_leap against spec B7, written with loops."""

import pytest

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.local_leap import LocalLeap

RULE = LocalLeap()


def by_hand(row: Row) -> set[int]:
    strict, relaxed = row.local_leap_anchor_threshold, row.local_leap_neighbor_threshold
    anchors = [c for c in row.masks if row.confidence[c] >= strict]
    near = {
        anchor + offset
        for anchor in anchors
        for offset in range(-row.local_leap_radius, row.local_leap_radius + 1)
    }
    taken = set(row.surest_first[:1])
    for column in row.masks:
        if row.confidence[column] >= (relaxed if column in near else strict):
            taken.add(column)
    return taken


def test_neighbours_of_anchors_need_less() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


@pytest.mark.parametrize(
    ("radius", "taken"),
    [(0, {4}), (1, {3, 4, 5}), (3, {1, 3, 4, 5, 7}), (99, {0, 1, 3, 4, 5, 7, 8})],
)
def test_the_radius_is_measured_from_the_anchor(radius: int, taken: set[int]) -> None:
    """A neighbourhood off by one decodes tokens that are not sure enough."""
    middling = [0.5, 0.5, 0.25, 0.5, 0.75, 0.5, 0.25, 0.5, 0.5]
    row = uniform_row(middling, local_leap_radius=radius)
    assert written(RULE, row) == [taken]


def test_a_token_is_no_anchor() -> None:
    """A prompt's tail or a decoded token would relax the threshold around it."""
    row = uniform_row([0.9, 0.5, 0.5, 0.6], masked=[False, True, True, True])
    assert written(RULE, row) == [{3}]
