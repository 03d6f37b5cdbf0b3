"""What is kept of the block under denoising of every slot, as one thing.

A request that is preempted loses its slot. Positions of its block were decided out of
order and are not known to the scheduler; masking them again would decode them in
another order, and so to other tokens. So the block waits here for the next slot.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class BlockState(Protocol):
    """A part of what is kept of blocks; one for each concern."""

    def save(self, slot: int) -> Any:
        """A copy of what is kept of the slot's block."""
        ...

    def restore(self, slot: int, saved: Any) -> None:
        """Go on with what `save` gave, in a slot that was made ready for it."""
        ...


class SuspendedBlocks:
    """The blocks of requests that have no slot, all parts of one together."""

    def __init__(self, parts: Sequence[BlockState]) -> None:
        self.parts = parts
        self.saved: dict[str, list[Any]] = {}
        """By request, one entry for each part."""

    def suspend(self, req_id: str, slot: int) -> None:
        """Keep the block of a request that is about to lose its slot."""
        self.saved[req_id] = [part.save(slot) for part in self.parts]

    def resume(self, req_id: str, slot: int) -> None:
        """Go on where the request was preempted, if it was."""
        for part, saved in zip(self.parts, self.saved.pop(req_id, ()), strict=False):
            part.restore(slot, saved)

    def forget(self, req_id: str) -> None:
        """Drop what was kept for a request that has ended."""
        self.saved.pop(req_id, None)


class BlockTable:
    """What is kept of the blocks of each slot: one tensor with a row for each slot.

    Grows with the largest block, or the most blocks, and never shrinks.
    """

    def __init__(
        self,
        num_slots: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        fill: float = 0,
    ) -> None:
        """`shape`: of what is kept of a slot."""
        self.fill = fill
        self.values = torch.full((num_slots, *shape), fill, dtype=dtype, device=device)
        """[num_slots, *shape]."""

    def grow(self, *shape: int) -> None:
        """Make room for what has this shape."""
        missing = [
            max(0, wanted - had)
            for wanted, had in zip(shape, self.values.shape[1:], strict=True)
        ]
        if any(missing):
            pad = [part for amount in reversed(missing) for part in (0, amount)]
            self.values = torch.nn.functional.pad(self.values, pad, value=self.fill)

    def clear(self, slot: int) -> None:
        self.values[slot] = self.fill

    def save(self, slot: int) -> torch.Tensor:
        return self.values[slot].clone()

    def restore(self, slot: int, saved: torch.Tensor) -> None:
        part = self.values[slot]
        for dim, length in enumerate(saved.shape):
            part = part.narrow(dim, 0, length)
        part.copy_(saved)
