"""The pieces that rules are made of: quota and best."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.canvas_steps import Row, as_step, batches, columns
from vllm_dllm.decoding.base import best

patient = settings(deadline=None)


@patient
@given(batches())
def test_the_quota_is_that_of_the_authors_schedule(batch: list[Row]) -> None:
    """Another split of the block over the steps decodes other tokens."""
    assert as_step(batch).quota().tolist() == [row.quota for row in batch]


@given(block=st.integers(1, 64), steps=st.integers(1, 80))
def test_the_quotas_of_all_steps_fill_the_block(block: int, steps: int) -> None:
    """A block that its steps do not fill would stay masked."""
    left = block
    for step in range(steps):
        row = Row([column < left for column in range(block)], [0.5] * block, 0, 1, 0.5)
        row.step, row.steps = step, steps
        left -= int(as_step([row]).quota())
    assert left == 0


@given(block=st.integers(1, 64), late=st.integers(0, 5), masks=st.integers(0, 64))
def test_past_the_last_step_all_masks_are_due(
    block: int, late: int, masks: int
) -> None:
    """A block that is late for any reason would never end."""
    masked = [column < masks for column in range(block)]
    row = Row(masked, [0.5] * block, step=3 + late, steps=3, threshold=0.5)
    assert int(as_step([row]).quota()) == min(masks, block)


@patient
@given(batches(), st.data())
def test_best_takes_the_highest_and_among_equals_the_lowest_column(
    batch: list[Row], data: st.DataObject
) -> None:
    """Ties broken otherwise on another device give other tokens there."""
    counts = [data.draw(st.integers(0, len(row.masks))) for row in batch]
    step = as_step(batch)
    chosen = best(step.confidence, step.masked, torch.tensor(counts))
    assert columns(chosen) == [
        set(row.surest_first[:count]) for row, count in zip(batch, counts, strict=True)
    ]


def test_best_leaves_its_arguments_alone() -> None:
    """A rule that calls it twice would see its own first answer."""
    score = torch.tensor([[0.1, 0.9, 0.5]])
    among = torch.tensor([[True, False, True]])
    best(score, among, torch.tensor([1]))
    assert score.tolist() == torch.tensor([[0.1, 0.9, 0.5]]).tolist()
    assert among.tolist() == [[True, False, True]]
