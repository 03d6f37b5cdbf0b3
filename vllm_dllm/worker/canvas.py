"""Canvas: the block under denoising of every request slot.

Slot-indexed tensors, as in vLLM's `RequestState`: a request owns one slot while it runs
on the worker. Columns of a row are the positions of the block that the request is
denoising, or of its blocks in flight, one after the other; those left of its known
tokens are not read. What lies past the last block is masks, so nothing is kept of it.
"""

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.given import GAP
from vllm_dllm.ops.blocks import (
    Blocks,
    Leaving,
    Places,
    Tables,
    cells,
    gather,
    hand_out,
    store,
)
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.given import Given
from vllm_dllm.worker.memory import BlockTable
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.buffers import Buffers


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
        of_positions = (num_slots, (width,), torch.int64, device)
        self.tokens = BlockTable(*of_positions, fill=mask_token_id)
        """[num_slots, positions]."""
        self.decided_at = BlockTable(*of_positions)
        of_blocks = (num_slots, (1,), torch.int64, device)
        self.step = BlockTable(*of_blocks)
        """[num_slots, blocks in flight]."""
        self.post_steps = BlockTable(*of_blocks)
        self.tables = (self.tokens, self.decided_at, self.step, self.post_steps)
        self.kept = self._all_kept()
        self.block = torch.ones(num_slots, dtype=torch.int64, device=device)
        """Length of the request's blocks."""
        self.max_len = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Known tokens (prompt and answer) at which the request ends."""

    def add_request(self, slot: int, block: int, max_len: int, size: int = 1) -> None:
        """Start the first block of a request that has `size` blocks of `block`
        positions in flight."""
        # Beside several blocks there is a place for what is none of theirs.
        for table in (self.tokens, self.decided_at):
            table.grow(block if size == 1 else size * block + 1)
        for table in (self.step, self.post_steps):
            table.grow(size)
        self.kept = self._all_kept()
        for table in self.tables:
            table.clear(slot)
        self.block[slot] = block
        self.max_len[slot] = max_len

    def save(self, slot: int) -> list[torch.Tensor]:
        return [table.save(slot) for table in self.tables]

    def restore(self, slot: int, saved: list[torch.Tensor]) -> None:
        for table, values in zip(self.tables, saved, strict=True):
            table.restore(slot, values)

    def gather(
        self,
        spans: SpanBatch,
        revises: torch.Tensor | None,
        buffers: Buffers,
        end: torch.Tensor,
        given: Given,
    ) -> CanvasBatch:
        """The blocks of a step; opens those that it opens.

        Args:
            revises: [num_slots] bool: whether the request's rule may change decoded
                tokens; None if that of no request of the step may.
            end: [num_slots] int64: end of the request's last block.
            given: what requests give of their canvases.
        """
        rows, width = spans.rows, spans.width
        place: torch.Tensor | int = 0
        slot, slot_np, known = spans.slot, spans.slot_np, spans.known
        start, length = spans.block_start, spans.block_length
        active, rows_np = spans.decides, None
        if rows is not None:
            slot, slot_np, known = (
                slot[rows.owner],
                slot_np[rows.owner_np],
                known[rows.owner],
            )
            start, place = rows.start, rows.place
            length = rows.length
            active = active[rows.owner] & (length > 0)
        kept = spans.kept
        if rows is not None:
            kept = self._kept_at(slot, rows.place, width)
        blocks = gather(
            self.kept,
            Places(slot, place, kept),
            known,
            start,
            length,
            active,
            width,
            self.mask_token_id,
        )
        is_given = None
        if given.any(slot_np):
            column = torch.arange(width, device=slot.device)
            found = given.at(slot.unsqueeze(1), start.unsqueeze(1) + column)
            found = found.masked_fill(column >= length.unsqueeze(1), GAP)
            blocks, is_given = _with_given(blocks, found, active), found != GAP
        masked = blocks.masked
        writable, opened = None, None
        if spans.first_row is not None:
            first_row, num_rows = spans.first_row, spans.length
            if rows is not None:
                first_row, num_rows = first_row[rows.owner], num_rows[rows.owner]
            column = torch.arange(width, device=slot.device)
            row = column - (first_row - start).unsqueeze(1)
            writable = (row >= 0) & (row < num_rows.unsqueeze(1))
        if rows is not None:
            masks = masked.sum(dim=1)
            opened = buffers.open(
                spans.slot, spans.decides, rows, masks, end[spans.slot]
            )
            is_open = opened.is_open.unsqueeze(1)
            writable = is_open if writable is None else is_open & writable
        if self.whole_blocks:
            rows_np = spans.rows_np * spans.decides_np
            if rows is not None:
                rows_np = rows.logit_rows_np * spans.decides_np[rows.owner_np]
            block, column = _cells_of_blocks(rows_np, slot.device)
            position = start[block] + column
        else:
            wanted = masked
            if revises is not None:
                wanted = wanted | (blocks.editable & revises[slot].unsqueeze(1))
            if writable is not None:
                wanted = wanted & writable
            block, column, position = cells(wanted, start)
        return CanvasBatch(
            spans=spans,
            slot=slot,
            slot_np=slot_np,
            place=place,
            known=known,
            start=start,
            length=length,
            active=active,
            **blocks._asdict(),
            writable=writable,
            revises=revises is not None,
            cell=(block, column),
            cell_position=position,
            rows_np=rows_np,
            kept=kept,
            given=is_given,
            buffered=opened,
        )

    def _all_kept(self) -> Tables:
        """The tables as they are until one of them grows."""
        return Tables(*(table.values for table in self.tables))

    def _kept_at(
        self, slot: torch.Tensor, place: torch.Tensor, width: int
    ) -> torch.Tensor:
        """As `CanvasBatch.kept`; slot, place: [m] int64."""
        column = torch.arange(width, device=slot.device)
        block = self.block[slot].unsqueeze(1)
        last = self.tokens.values.shape[1] - 1
        at = place.unsqueeze(1) * block + column
        return at.masked_fill(column >= block, last)

    def hand_out(self, batch: CanvasBatch, done: torch.Tensor) -> Leaving:
        """Hand out what is stable of a step's blocks, one of each request, and store
        the rest; what was handed out makes room for masks.

        done: [m] bool: decoded positions of the block are stable.
        """
        of_blocks = batch.known, batch.start, batch.length, batch.active, done
        limits = self.max_len, self.mask_token_id
        return hand_out(
            self.kept, *batch.kept_blocks, batch.masked, *of_blocks, *limits
        )

    def scatter(
        self, batch: CanvasBatch, left: torch.Tensor, finished: torch.Tensor
    ) -> None:
        """Store the blocks after a step; what was handed out makes room for masks.

        Args:
            left: [m] int64: the first column that was not handed out.
            finished: [m] bool: every token of the block was.
        """
        taken = batch.active
        if batch.buffered is not None:
            taken = taken & batch.buffered.is_open
        settled = batch.masked, taken, left, finished
        store(self.kept, *batch.kept_blocks, *settled, self.mask_token_id)


def _with_given(blocks: Blocks, given: torch.Tensor, active: torch.Tensor) -> Blocks:
    """Blocks with what is given of them, which is neither masked nor editable.

    given: [m, width] int64, `GAP` where nothing is.
    """
    is_given = given != GAP
    masked = blocks.masked & ~is_given
    # Of a block whose last masks are given it was not counted.
    filled = blocks.masked.any(dim=1) & ~masked.any(dim=1)
    return Blocks(
        tokens=torch.where(is_given, given, blocks.tokens),
        decided_at=blocks.decided_at.masked_fill(is_given, -1),
        step=blocks.step,
        post_steps=blocks.post_steps + (active & filled),
        masked=masked,
        editable=blocks.editable & ~is_given,
    )


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
