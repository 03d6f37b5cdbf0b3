"""dmax against the description of its step, written with loops."""

import pytest

from tests.decoding.canvas_steps import (
    BATCHES,
    NAN,
    Row,
    as_float32,
    as_step,
    uniform_row,
    written,
)
from vllm_dllm.decoding.dmax import SURE, DMax

RULE = DMax()


def taken_by_hand(row: Row) -> set[int]:
    taken: set[int] = set()
    for column in row.masks:
        if row.confidence[column] < row.threshold:
            break
        taken.add(column)
    return taken or set(row.masks[:1])


def changed_by_hand(row: Row) -> set[int]:
    return {
        column
        for column in range(row.block)
        if row.editable[column] and row.candidate[column] != row.tokens[column]
    }


def done_by_hand(row: Row) -> bool:
    taken = taken_by_hand(row)
    active = [c for c in range(row.block) if row.masked[c] or row.editable[c]]
    sure = all(row.confidence[column] >= as_float32(SURE) for column in active)
    idle = not (taken | changed_by_hand(row))
    late = row.step + 1 >= row.block
    return (sure or idle or late) and not set(row.masks) - taken


def test_masks_are_taken_from_the_left_and_tokens_follow_the_model() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [
            taken_by_hand(row) | changed_by_hand(row) for row in batch
        ]


def test_a_block_is_done_when_sure_or_settled_or_late() -> None:
    """Done early, corrections are lost; done late, forwards are; with masks, never."""
    for batch in BATCHES:
        done = RULE.decide(as_step(batch, RULE)).done
        assert done is not None
        assert done.tolist() == [done_by_hand(row) for row in batch]


def test_a_mask_that_is_as_sure_as_the_threshold_is_taken() -> None:
    """The other thresholds of block-causal models are strict."""
    row = uniform_row([0.75, 0.5, 0.25, 0.9], threshold=0.5)
    assert written(RULE, row) == [{0, 1}]


@pytest.mark.parametrize("lowest", [SURE, 0.75])
def test_a_block_whose_tokens_are_all_sure_is_done_at_once(lowest: float) -> None:
    """Every block would cost a step that changes nothing."""
    row = uniform_row([1.0, lowest, 1.0], threshold=0.0)
    done = RULE.decide(as_step([row], RULE)).done
    assert done is not None and done.tolist() == [lowest == SURE]


def test_what_a_sure_step_leaves_masked_keeps_the_block() -> None:
    """With a threshold above `SURE` an answer would hold masks."""
    row = uniform_row([1.0, 0.9, 0.9], threshold=0.95)
    decision = RULE.decide(as_step([row], RULE))
    assert decision.write.tolist() == [[True, False, False]]
    assert decision.done is not None and decision.done.tolist() == [False]


def test_tokens_of_the_prompt_do_not_count() -> None:
    """The authors' last condition is about what was masked when the block began."""
    row = Row([False, True], [NAN, 0.95], threshold=0.5)
    decision = RULE.decide(as_step([row], RULE))
    assert decision.write.tolist() == [[False, True]]
    assert decision.done is not None and decision.done.tolist() == [True]
