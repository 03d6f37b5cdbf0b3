"""wedlm against its formula, written with loops."""

import pytest

from tests.decoding.canvas_steps import BATCHES, Row, as_float32, uniform_row, written
from vllm_dllm.decoding.leftmost import Leftmost
from vllm_dllm.decoding.wedlm import WeDLM

RULE = WeDLM()


def by_hand(row: Row) -> set[int]:
    score = {
        column: as_float32(
            row.entropy[column]
            + as_float32(row.pos_penalty_factor * (column - row.masks[0]))
        )
        for column in row.masks
    }
    settled = {column for column in row.masks if score[column] < row.entropy_threshold}
    return settled or set(sorted(row.masks, key=lambda c: (score[c], c))[:1])


def test_settled_positions_are_taken_or_the_most_settled_one() -> None:
    """Another choice decodes other tokens than WeDLM's engine."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


@pytest.mark.parametrize(
    ("threshold", "factor", "taken"),
    [
        (0.0, 0.0, {2}),  # nothing is below it: the lowest alone
        (0.125, 0.0, {2}),  # an entropy equal to the bound is not below it
        (0.126, 0.0, {2}),
        (0.251, 0.0, {0, 2, 3}),
        (0.251, 0.0625, {0, 2}),  # the last one lies three positions behind the first
        (0.251, 0.125, {0}),
        (0.25, 0.125, {0}),  # nothing is below it: of equals the first
    ],
)
def test_a_position_far_behind_the_first_mask_must_be_surer(
    threshold: float, factor: float, taken: set[int]
) -> None:
    """Without the penalty the window decodes far ahead of what can be handed out."""
    row = uniform_row(
        [0.5] * 4,
        entropy=[0.25, 1.0, 0.125, 0.25],
        entropy_threshold=threshold,
        pos_penalty_factor=factor,
    )
    assert written(RULE, row) == [taken]


def test_places_are_counted_from_the_first_mask() -> None:
    """Counted from the start of the window, a late one would be taken too late."""
    row = uniform_row([0.5] * 4, entropy=[9.0, 9.0, 0.25, 0.25])
    row.masked, row.entropy_threshold = [False, False, True, True], 0.3
    assert written(RULE, row) == [{2}]


def test_sequential_takes_the_leftmost_mask_of_a_window() -> None:
    """A window has no last step in which all that is left would be due."""
    for batch in BATCHES:
        assert written(Leftmost(), *batch) == [set(row.masks[:1]) for row in batch]
