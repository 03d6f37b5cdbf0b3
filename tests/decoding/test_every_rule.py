"""What holds for each decoding rule, whatever its formula."""

from dataclasses import fields

import pytest
import torch

from tests.decoding.canvas_steps import BATCHES, NAN, Row, as_step, columns, written
from vllm_dllm.decoding.base import CanvasStep
from vllm_dllm.decoding.registry import RULES, get_rule

of_each_rule = pytest.mark.parametrize("name", RULES)


@of_each_rule
def test_a_row_is_answered_as_if_it_were_alone(name: str) -> None:
    """A request's tokens would depend on who else is being served."""
    rule = get_rule(name)
    for batch in BATCHES:
        assert written(rule, *batch) == [written(rule, row)[0] for row in batch]


@of_each_rule
def test_where_masks_are_at_least_one_is_taken(name: str) -> None:
    """A step that takes nothing is repeated for ever.

    Unless time goes on: in the last of its steps a rule must take all.
    """
    rule = get_rule(name)
    for batch in BATCHES:
        for row, write in zip(batch, written(rule, *batch), strict=True):
            taken = write & set(row.masks)
            if "time" not in rule.needs:
                assert bool(taken) == bool(row.masks)
            elif row.step >= row.steps - 1:
                assert taken == set(row.masks)


@of_each_rule
def test_nothing_else_is_written(name: str) -> None:
    """Prompt tails and tokens that were handed out would be overwritten."""
    rule = get_rule(name)
    for batch in BATCHES:
        for row, write in zip(batch, written(rule, *batch), strict=True):
            editable = {c for c in range(row.block) if row.editable[c] and rule.revises}
            assert write <= set(row.masks) | editable


def tensors(step: CanvasStep) -> list[torch.Tensor]:
    values = [getattr(step, field.name) for field in fields(step)]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return [*tensors, *step.params.values()]


@of_each_rule
def test_the_step_is_left_as_it_was(name: str) -> None:
    """The sampler goes on with the same tensors."""
    rule = get_rule(name)
    for batch in BATCHES:
        step, same = as_step(batch, rule), as_step(batch, rule)
        rule.decide(step)
        for left, right in zip(tensors(step), tensors(same), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


@of_each_rule
def test_an_answer_is_in_tensors_of_its_own(name: str) -> None:
    """What is written would change while it is written: the sampler goes on with both,
    and changes both in place."""
    rule = get_rule(name)
    for batch in BATCHES:
        step = as_step(batch, rule)
        answer = vars(rule.decide(step)).values()
        given = {value.untyped_storage().data_ptr() for value in tensors(step)}
        for value in answer:
            if value is not None:
                assert value.untyped_storage().data_ptr() not in given
                assert value.is_contiguous()


@of_each_rule
def test_a_rule_that_selects_leaves_done_to_the_masks(name: str) -> None:
    """Either kind of rule would be taken for the other."""
    rule = get_rule(name)
    for batch in BATCHES:
        decision = rule.decide(as_step(batch, rule))
        assert (decision.done is not None) == rule.revises
        assert decision.write.dtype == torch.bool


@of_each_rule
def test_equal_values_go_by_position(name: str) -> None:
    """Which of equals comes first would depend on the device."""
    rule = get_rule(name)
    row = Row([False, True, True, True], [NAN, 0.25, 0.25, 0.25])
    # Of Dream's times, half of three masks.
    row.steps = 2 if "time" in rule.needs else row.block
    row.threshold = row.low_threshold = 0.5
    row.entropy = row.margin = row.noise = [NAN, 0.25, 0.25, 0.25]
    row.factor, row.entropy_bound, row.entropy_threshold = 1.0, 0.0, 0.0
    # credit takes all that are within 1e-5 of the surest, as its authors do; the others
    # put them in no order.
    everything = name in ("credit", "origin", "random_order")
    assert written(rule, row) == [{1, 2, 3} if everything else {1}]


@of_each_rule
def test_a_batch_without_canvases_is_left_alone(name: str) -> None:
    """A step of prefills alone asks the rules about rows without masks."""
    rule = get_rule(name)
    row = Row([False] * 4, [NAN] * 4)
    step = as_step([row, row], rule)
    assert columns(rule.decide(step).write) == [set(), set()]
