"""low_confidence against spec B1 and B5 (static), written with loops; and by masks."""

from itertools import product

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.base import DecodingRule
from vllm_dllm.decoding.even_low_confidence import EvenLowConfidence
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
    assert in_steps(RULE, [True] * 7, 3) == [{4, 5, 6}, {2, 3}, {0, 1}]


def in_steps(rule: DecodingRule, left: list[bool], steps: int) -> list[set[int]]:
    """What each step of a block takes, the rightmost mask being the surest."""
    taken = []
    for step in range(steps):
        sure = [0.01 * column for column in range(len(left))]
        (chosen,) = written(
            rule, uniform_row(sure, masked=left, step=step, steps=steps)
        )
        left = [masked and c not in chosen for c, masked in enumerate(left)]
        taken.append(chosen)
    return taken


def test_masks_beside_a_prompt_are_spread_over_all_steps() -> None:
    """By the quota of a whole block they are decoded before the last step."""
    left = [False, True, True, True]
    assert in_steps(RULE, left, 2) == [{2, 3}, {1}]
    assert in_steps(RULE, left, 3) == [{2, 3}, {1}, set()]
    assert in_steps(EvenLowConfidence(), left, 3) == [{3}, {2}, {1}]
    for block, given, steps in product((4, 9), range(4), range(1, 10)):
        left = [column >= given for column in range(block)]
        taken = in_steps(EvenLowConfidence(), left, steps)
        masks = block - given
        assert [len(some) for some in taken] == [
            masks // steps + (step < masks % steps) for step in range(steps)
        ]
        if not given:
            assert taken == in_steps(RULE, left, steps)
