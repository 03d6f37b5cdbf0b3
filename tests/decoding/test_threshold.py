"""threshold against spec B4 (2.0) and B5 (dynamic), written with loops."""

import pytest
import torch
from hypothesis import given, settings

from tests.decoding.canvas_steps import Row, as_step, batches, columns, uniform_row
from vllm_dllm.decoding.threshold import Threshold

RULE = Threshold()
patient = settings(deadline=None)


def by_hand(row: Row) -> set[int]:
    above = [c for c in row.masks if row.confidence[c] > as_float32(row.threshold)]
    return set(above if len(above) >= row.quota else row.surest_first[: row.quota])


def as_float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def rounded(batch: list[Row]) -> list[Row]:
    """The confidences as float32 holds them, so that `>` sees the same numbers."""
    for row in batch:
        row.confidence = [as_float32(value) for value in row.confidence]
    return batch


@patient
@given(batches().map(rounded))
def test_all_sure_positions_or_the_quota_are_taken(batch: list[Row]) -> None:
    """Another choice decodes other tokens than the authors' code."""
    assert columns(RULE.select(as_step(batch))) == [by_hand(row) for row in batch]


@patient
@given(batches())
def test_a_row_is_answered_as_if_it_were_alone(batch: list[Row]) -> None:
    """A request's tokens would depend on who else is being served."""
    together = RULE.select(as_step(batch))
    alone = [RULE.select(as_step([row]))[0] for row in batch]
    assert columns(together) == [columns(one[None])[0] for one in alone]


def test_a_confidence_equal_to_the_threshold_is_not_above_it() -> None:
    """`>=` would take tokens that LLaDA2 and SDAR leave for a later step."""
    row = uniform_row([0.5, 0.75, 0.5, 0.25], threshold=0.5)
    assert columns(RULE.select(as_step([row]))) == [{1}]


@pytest.mark.parametrize("threshold", [1.0, 0.99])
def test_with_nothing_above_the_threshold_the_surest_are_taken(
    threshold: float,
) -> None:
    """A step that takes nothing is repeated for ever."""
    row = uniform_row([0.5, 0.75, 0.5, 0.25], steps=2, threshold=threshold)
    assert columns(RULE.select(as_step([row]))) == [{0, 1}]


def test_a_threshold_of_zero_decodes_the_block_at_once() -> None:
    """The fastest setting would silently be a slower one."""
    row = uniform_row([0.01, 0.02, 0.03, 0.04], threshold=0.0)
    assert columns(RULE.select(as_step([row]))) == [{0, 1, 2, 3}]


def test_positions_with_final_tokens_are_not_taken_again() -> None:
    """Prompt tails and decoded tokens would be overwritten by sure candidates."""
    row = uniform_row([0.99, 0.99, 0.99, 0.6], masked=[False, False, True, True])
    assert columns(RULE.select(as_step([row]))) == [{2, 3}]
