"""threshold and joint_threshold of several blocks, against plain loops."""

from random import Random

import pytest
import torch

from tests.decoding.canvas_steps import BATCHES, PROBABILITIES, Row, as_step, columns
from vllm_dllm.decoding.base import CanvasStep
from vllm_dllm.decoding.registry import get_rule

NAIVE, EDIT = get_rule("buffered_threshold"), get_rule("buffered_joint_threshold")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def step_of(batch: list[Row], seed: int) -> tuple[CanvasStep, list[float], list[float]]:
    """With the share of the block before each, and the least that it should be."""
    draw = Random(seed)
    step = as_step(batch)
    before = [draw.choice(SHARES) for _ in batch]
    least = [draw.choice(SHARES[1:]) for _ in batch]
    step.before = torch.tensor(before)
    step.params["semi_complete_threshold"] = torch.tensor(least)
    step.age = torch.tensor([row.step + draw.randint(0, 1) for row in batch])
    return step, before, least


@pytest.mark.parametrize("name", ["buffered_threshold", "d2f"])
def test_a_block_takes_what_is_sure_or_what_is_due(name: str) -> None:
    """A block behind an unfinished one would be forced, or one in front be held."""
    held = forced = 0
    for seed, batch in enumerate(BATCHES):
        step, before, least = step_of(batch, seed)
        got = columns(get_rule(name).decide(step).write)
        for row, share, wanted, write in zip(batch, before, least, got, strict=True):
            sure = {c for c in row.masks if row.confidence[c] > row.threshold}
            if not sure and share >= wanted:
                sure = set(row.surest_first[:1])
                forced += bool(sure)
            held += bool(row.masks) and not sure
            assert write == sure
    assert min(held, forced) > 20


def test_editing_writes_and_ends_as_described() -> None:
    """A block that is done a step early leaves with other tokens."""
    late = settled = spent = goes_on = 0
    for seed, batch in enumerate(BATCHES):
        step, _, _ = step_of(batch, seed)
        assert step.age is not None
        decision = EDIT.decide(step)
        assert decision.done is not None and decision.stability is not None
        found = zip(
            batch,
            step.age.tolist(),
            columns(decision.write),
            decision.done.tolist(),
            decision.stability.tolist(),
            strict=True,
        )
        for row, age, write, done, stability in found:
            taken = {c for c in row.masks if row.confidence[c] > row.threshold}
            if row.masks and not taken:
                taken = {row.surest_first[0]}
            decoded = [c for c in range(row.block) if row.editable[c]]
            other = [c for c in decoded if row.candidate[c] != row.tokens[c]]
            edited = {c for c in other if row.confidence[c] > row.edit_threshold}
            same = 1 - len(other) / len(decoded) if decoded else 1.0
            if age >= row.block + row.max_post_steps:
                late += 1
                expected = (set(row.masks) | edited, True, 1.0)
            elif not taken | edited:
                settled += 1
                expected = (set(), True, same)
            elif not row.masks and row.post_steps > row.max_post_steps:
                spent += 1
                expected = (set(), True, same)
            else:
                goes_on += 1
                expected = (taken | edited, False, same)
            assert (write, done) == expected[:2]
            assert abs(stability - expected[2]) < 1e-6
    assert min(late, settled, spent, goes_on) > 5, (late, settled, spent, goes_on)


def test_both_thresholds_are_strict() -> None:
    """As Diffulex's; equal values are common, for a saturated softmax gives 1."""
    assert 0.5 in PROBABILITIES
    row = Row([True, False], [0.5, 0.5], editable=[False, True])
    row.tokens, row.candidate = [-1, 0], [1, 1]
    row.threshold = row.edit_threshold = 0.5
    step, _, _ = step_of([row], 0)
    step.before = torch.tensor([0.5])
    step.params["semi_complete_threshold"] = torch.tensor([0.75])
    assert columns(NAIVE.decide(step).write) == [set()]
    step.params["semi_complete_threshold"] = torch.tensor([0.5])
    assert columns(NAIVE.decide(step).write) == [{0}]
    step.age = torch.tensor([0])
    assert columns(EDIT.decide(step).write) == [{0}]
