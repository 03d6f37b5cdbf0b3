"""Canvas: the block under denoising of every request slot.

Slot-indexed tensors, as in vLLM's `RequestState`: a request owns one slot while it runs
on the worker. Columns of a row are the positions of the block that the request is
denoising; those left of its known tokens are not read. What lies past the block is
masks, so nothing is kept of it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.memory import BlockTable
from vllm_dllm.worker.spans.batch import SpanBatch


@dataclass
class SavedBlock:
    """The block of a request that has no slot."""

    tokens: torch.Tensor
    """[width] int64."""
    decided_at: torch.Tensor
    """[width] int64."""
    step: int
    post_steps: int


class Canvas:
    """A `BlockState`."""

    def __init__(
        self, num_slots: int, width: int, mask_token_id: int, device: torch.device
    ) -> None:
        """`width`: of the blocks; grows when a request has a longer one."""
        self.mask_token_id = mask_token_id
        self.whole_blocks = device.type != "cpu"
        """Whether logits are computed of all positions of a block: how many are masks
        is known on the device alone, and to wait for the number of a GPU costs more
        than the rows it saves."""
        table = (num_slots, width, torch.int64, device)
        self.tokens = BlockTable(*table, fill=mask_token_id)
        self.decided_at = BlockTable(*table)
        self.step = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.post_steps = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.max_len = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Known tokens (prompt and answer) at which the request ends."""

    def add_request(self, slot: int, block: int, max_len: int) -> None:
        """Start the first block of a request with blocks of `block` positions."""
        for table in (self.tokens, self.decided_at):
            table.widen(block)
            table.clear(slot)
        self.step[slot] = self.post_steps[slot] = 0
        self.max_len[slot] = max_len

    def save(self, slot: int) -> SavedBlock:
        return SavedBlock(
            self.tokens.save(slot),
            self.decided_at.save(slot),
            int(self.step[slot]),
            int(self.post_steps[slot]),
        )

    def restore(self, slot: int, saved: SavedBlock) -> None:
        self.tokens.restore(slot, saved.tokens)
        self.decided_at.restore(slot, saved.decided_at)
        self.step[slot], self.post_steps[slot] = saved.step, saved.post_steps

    def gather(self, spans: SpanBatch, revises: torch.Tensor) -> CanvasBatch:
        """The blocks of a step.

        Args:
            revises: [n] bool: whether the request's rule may change decoded tokens.
        """
        slot, width = spans.slot, spans.width
        tokens = self.tokens.values[slot, :width]
        column = torch.arange(width, device=slot.device)
        start = spans.block_start.unsqueeze(1)
        in_canvas = (
            spans.decides.unsqueeze(1)
            & (column >= spans.known.unsqueeze(1) - start)
            & (column < spans.block_length.unsqueeze(1))
        )
        is_mask = tokens == self.mask_token_id
        masked, editable = in_canvas & is_mask, in_canvas & ~is_mask
        predicted = None
        if spans.first_row is not None:
            predicted = column >= spans.first_row.unsqueeze(1) - start
        rows_np = None
        if self.whole_blocks:
            rows_np = spans.rows_np * spans.decides_np
            cell = _cells_of_blocks(rows_np, slot.device)
        else:
            wanted = masked | (editable & revises.unsqueeze(1))
            if predicted is not None:
                wanted &= predicted
            request, position = wanted.nonzero(as_tuple=True)
            cell = request, position
        began_without_mask = spans.decides & ~masked.any(dim=1)
        return CanvasBatch(
            spans=spans,
            step=self.step[slot],
            post_steps=self.post_steps[slot] + began_without_mask,
            tokens=tokens,
            masked=masked,
            editable=editable,
            predicted=predicted,
            decided_at=self.decided_at.values[slot, :width],
            cell=cell,
            rows_np=rows_np,
        )

    def scatter(self, batch: CanvasBatch, finished: torch.Tensor) -> None:
        """Store the blocks after a step; those in `finished` make room for the next.

        Args:
            finished: [n] bool: every token of the block was handed out.
        """
        slot, width = batch.spans.slot, batch.tokens.shape[1]
        self.tokens.values[slot, :width] = batch.tokens.masked_fill(
            finished.unsqueeze(1), self.mask_token_id
        )
        self.decided_at.values[slot, :width] = batch.decided_at
        self.step[slot] = (batch.step + batch.active).masked_fill(finished, 0)
        self.post_steps[slot] = batch.post_steps.masked_fill(finished, 0)


def _cells_of_blocks(
    rows_np: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first rows_np[i] ([n] int64) columns of each request i, as
    `CanvasBatch.cell`."""
    total = int(rows_np.sum())
    rows = async_tensor_h2d(rows_np, device)
    request = torch.repeat_interleave(rows, output_size=total)
    before = (rows.cumsum(0) - rows)[request]
    return request, torch.arange(total, device=device) - before
