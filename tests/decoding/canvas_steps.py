"""Steps to ask the rules about, and slow helpers to answer them by hand."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from vllm_dllm.decoding.base import CanvasStep

# Few values, so that ties are common; the bounds of a probability are among them.
CONFIDENCES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass
class Row:
    """One request's part of a step, in plain Python."""

    masked: list[bool]
    confidence: list[float]
    step: int
    steps: int
    threshold: float

    @property
    def block(self) -> int:
        return len(self.masked)

    @property
    def masks(self) -> list[int]:
        return [column for column, masked in enumerate(self.masked) if masked]

    @property
    def surest_first(self) -> list[int]:
        """The masks by falling confidence; among equals the lower column first."""
        return sorted(self.masks, key=lambda column: (-self.confidence[column], column))

    @property
    def quota(self) -> int:
        """This step's share when the block is spread over the steps (spec B1, B4)."""
        if self.step >= self.steps:
            return len(self.masks)
        schedule = [self.block // self.steps] * self.steps
        for step in range(self.block % self.steps):
            schedule[step] += 1
        return min(schedule[self.step], len(self.masks))


@st.composite
def rows(draw: st.DrawFn, block: int) -> Row:
    """A row in any state: a prompt tail, the last steps, nothing masked, a step late.

    Confidences outside of the masks are NaN: a rule must not look at them.
    """
    tail = draw(st.integers(0, block - 1))
    masked = [
        column >= tail and masked
        for column, masked in enumerate(
            draw(st.lists(st.booleans(), min_size=block, max_size=block))
        )
    ]
    confidence = [
        draw(st.sampled_from(CONFIDENCES)) if masked[column] else float("nan")
        for column in range(block)
    ]
    steps = draw(st.integers(1, block + 2))
    return Row(
        masked=masked,
        confidence=confidence,
        step=draw(st.integers(0, steps + 1)),
        steps=steps,
        threshold=draw(st.sampled_from(CONFIDENCES)),
    )


@st.composite
def batches(draw: st.DrawFn) -> list[Row]:
    """Rows of one block size, of which there is at least one."""
    block = draw(st.integers(1, 17))
    return draw(st.lists(rows(block), min_size=1, max_size=5))


def as_step(batch: list[Row]) -> CanvasStep:
    """The same rows as the tensors that a rule is given."""
    return CanvasStep(
        masked=torch.tensor([row.masked for row in batch]),
        step=torch.tensor([row.step for row in batch]),
        confidence=torch.tensor([row.confidence for row in batch]),
        threshold=torch.tensor([row.threshold for row in batch]),
        steps=torch.tensor([row.steps for row in batch]),
    )


def columns(selected: torch.Tensor) -> list[set[int]]:
    """The selected columns of each row."""
    return [set(row.nonzero().flatten().tolist()) for row in selected]


def uniform_row(confidence: list[float], **changes: Any) -> Row:
    """A row with all positions masked, in the first of as many steps."""
    values: dict[str, Any] = {
        "masked": [True] * len(confidence),
        "confidence": confidence,
        "step": 0,
        "steps": len(confidence),
        "threshold": 0.5,
        **changes,
    }
    return Row(**values)
