"""sequential against spec B5, written with loops."""

from hypothesis import given, settings

from tests.decoding.canvas_steps import Row, as_step, batches, columns, uniform_row
from vllm_dllm.decoding.sequential import Sequential

RULE = Sequential()
patient = settings(deadline=None)


def by_hand(row: Row) -> set[int]:
    return set(row.masks[: row.quota])


@patient
@given(batches())
def test_the_leftmost_masks_fill_the_quota(batch: list[Row]) -> None:
    """Another choice decodes other tokens than the authors' code."""
    assert columns(RULE.select(as_step(batch))) == [by_hand(row) for row in batch]


@patient
@given(batches())
def test_a_row_is_answered_as_if_it_were_alone(batch: list[Row]) -> None:
    """A request's tokens would depend on who else is being served."""
    together = RULE.select(as_step(batch))
    alone = [RULE.select(as_step([row]))[0] for row in batch]
    assert columns(together) == [columns(one[None])[0] for one in alone]


def test_confidence_changes_nothing() -> None:
    """A sure token far right would be taken before its left context is there."""
    row = uniform_row([0.1, 0.2, 0.3, 1.0], steps=2, threshold=0.0)
    assert columns(RULE.select(as_step([row]))) == [{0, 1}]


def test_a_prompt_tail_is_stepped_over() -> None:
    """Counting its columns would leave a step with nothing to take."""
    row = uniform_row([0.5] * 4, masked=[False, False, True, True], steps=2)
    assert columns(RULE.select(as_step([row]))) == [{2, 3}]
