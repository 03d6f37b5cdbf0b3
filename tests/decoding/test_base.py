"""The pieces that rules are made of: quota and best."""

from dataclasses import fields
from random import Random

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.decoding.canvas_steps import BATCHES, Row, as_step, columns
from vllm_dllm.decoding.base import CanvasStep, best
from vllm_dllm.decoding.registry import get_rule


def test_the_batches_hold_what_rules_could_stumble_over() -> None:
    """A comparison on rows that are all alike shows little."""
    rows = [row for batch in BATCHES for row in batch]
    kinds = {
        "no mask": [not row.masks for row in rows],
        "one mask": [len(row.masks) == 1 < row.block for row in rows],
        "all masks": [len(row.masks) == row.block > 1 for row in rows],
        "prompt tail": [row.masks and not row.masked[0] for row in rows],
        "editable": [any(row.editable) for row in rows],
        "late": [row.masks and row.step >= row.steps for row in rows],
        "shorter than another": [
            row.masks and row.block < max(other.block for other in batch)
            for batch in BATCHES
            for row in batch
        ],
        "no step of the last": [row.masks and row.time < 1 for row in rows],
        "by lot": [row.masks and row.alg_temp > 0 for row in rows],
        "ties": [
            len({row.confidence[column] for column in row.masks}) < len(row.masks)
            for row in rows
        ],
        "other parameters": [
            len({(row.steps, row.threshold) for row in batch}) > 1 for batch in BATCHES
        ],
    }
    found = {name: sum(map(bool, hits)) for name, hits in kinds.items()}
    assert min(found.values()) >= 20, found


def test_the_quota_is_that_of_the_authors_schedule() -> None:
    """Another split of the block over the steps decodes other tokens."""
    for batch in BATCHES:
        assert as_step(batch).quota().tolist() == [row.quota for row in batch]


def test_the_quota_is_that_of_the_rows_own_block() -> None:
    """A short block beside a long one would take more than its steps say."""
    batch = [Row([True] * block, [0.5] * block, steps=4) for block in (8, 32, 6)]
    assert as_step(batch).quota().tolist() == [2, 8, 2]


def test_what_is_given_in_a_block_is_no_part_of_its_quota() -> None:
    """LLaDA spreads the masks of a block over its steps. With all positions of it, the
    first steps would decide all of them."""
    step = as_step([Row([True] * 8, [0.5] * 8, steps=4, step=at) for at in range(4)])
    step.given = torch.tensor([3] * 4)
    assert step.quota().tolist() == [2, 1, 1, 1]


def test_some_rows_of_a_step_are_whole_rows() -> None:
    """A tensor left behind would be that of other requests."""
    for batch in BATCHES:
        rows = list(range(len(batch)))[::-2]
        taken = as_step(batch).take(torch.tensor(rows))
        expected = as_step([batch[row] for row in rows])
        width = expected.masked.shape[1]
        for part in fields(CanvasStep):
            if part.name in ("params", "moves", "another", "memory"):
                continue
            got, same = getattr(taken, part.name), getattr(expected, part.name)
            if part.name in ("before", "age", "given"):
                assert got is same is None
                continue
            got = got[:, :width] if got.dim() == 2 else got
            torch.testing.assert_close(got, same, rtol=0, atol=0, equal_nan=True)
    none = as_step(BATCHES[0], get_rule("sequential")).take(torch.tensor([0]))
    assert (none.entropy, none.margin, none.noise, none.time) == (None,) * 4


@given(block=st.integers(1, 64), steps=st.integers(1, 80))
def test_the_quotas_of_all_steps_fill_the_block(block: int, steps: int) -> None:
    """A block that its steps do not fill would stay masked."""
    left = block
    for step in range(steps):
        masked = [column < left for column in range(block)]
        row = Row(masked, [0.5] * block, step=step, steps=steps)
        left -= int(as_step([row]).quota())
    assert left == 0


@given(block=st.integers(1, 64), late=st.integers(0, 5), masks=st.integers(0, 64))
def test_past_the_last_step_all_masks_are_due(
    block: int, late: int, masks: int
) -> None:
    """A block that is late for any reason would never end."""
    masked = [column < masks for column in range(block)]
    row = Row(masked, [0.5] * block, step=3 + late, steps=3)
    assert int(as_step([row]).quota()) == min(masks, block)


def test_best_takes_the_highest_and_among_equals_the_lowest_column() -> None:
    """Ties broken otherwise on another device give other tokens there."""
    draw = Random(0)
    for batch in BATCHES:
        counts = [draw.randint(0, len(row.masks)) for row in batch]
        step = as_step(batch)
        chosen = best(step.confidence, step.masked, torch.tensor(counts))
        assert columns(chosen) == [
            set(row.surest_first[:count])
            for row, count in zip(batch, counts, strict=True)
        ]


def test_best_leaves_its_arguments_alone() -> None:
    """A rule that calls it twice would see its own first answer."""
    score = torch.tensor([[0.1, 0.9, 0.5]])
    among = torch.tensor([[True, False, True]])
    best(score, among, torch.tensor([1]))
    assert score.tolist() == torch.tensor([[0.1, 0.9, 0.5]]).tolist()
    assert among.tolist() == [[True, False, True]]
