"""CanvasBatch: the blocks under denoising of a step, gathered from their slots."""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.ops.blocks import Kept, Places, spread, write
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.block_rows import OpenBlocks


@dataclass
class CanvasBatch:
    """The `m` blocks of the `n` requests of a step.

    A request has one, or with a buffer several, one after the other. `width` is the
    length of the longest of them; shorter ones leave columns unused.
    """

    spans: SpanBatch
    slot: torch.Tensor
    """[m] int64."""
    slot_np: np.ndarray
    """[m] int64: the same on the CPU."""
    place: torch.Tensor | int
    """[m] int64: which of its slot's blocks it is; 0 where each request has one."""
    known: torch.Tensor
    """[m] int64: number of known tokens of the request."""
    start: torch.Tensor
    """[m] int64: first position of the block."""
    length: torch.Tensor
    """[m] int64: number of positions of the block; 0 past the end of the answer."""
    active: torch.Tensor
    """[m] bool: whether the step decides any of them."""
    step: torch.Tensor
    """[m] int64: steps that the block has already taken."""
    post_steps: torch.Tensor
    """[m] int64: of these, and of this one, how many began without a mask."""
    tokens: torch.Tensor
    """[m, width] int64; undefined left of the known tokens and past the block."""
    masked: torch.Tensor
    """[m, width] bool: positions of the canvas that are still masks."""
    editable: torch.Tensor
    """[m, width] bool: the other positions of the canvas, but for those given."""
    writable: torch.Tensor | None
    """[m, width] bool: positions that may be written in this step: a row of logits is
    of them, and their block is open. None: all of the canvas."""
    decided_at: torch.Tensor
    """[m, width] int64: the step of the block that wrote each token; -1 where it was
    given."""
    revises: bool
    """Whether a rule of the batch may replace tokens."""
    cell: tuple[torch.Tensor, torch.Tensor]
    """Index into [m, width] of the positions that logits are computed for, in their
    order: [rows], [rows] int64. Holds all of `masked` that may be written."""
    cell_position: torch.Tensor
    """[rows] int64: absolute positions of these."""
    rows_np: np.ndarray | None
    """[m] int64, on the CPU: how many of `cell` are of each block; None where that is
    known on the device alone."""
    kept: torch.Tensor | None = None
    """[m, width] int64: where each position is kept in the row of its slot, the last
    column for those past their block; None where each is in its own column."""
    given: torch.Tensor | None = None
    """[m, width] bool: positions of the block whose tokens the request gave; None if no
    request of the batch gives any."""
    buffered: OpenBlocks | None = None
    """What rules for buffers want to know; None where no request has one."""
    leaves_whole: torch.Tensor | None = None
    """[m] bool: blocks of which nothing is handed out before all of it is decoded; None
    if there are none."""
    found_end: torch.Tensor | None = None
    """[n] int64: where the block of a request ends, if that was found in this step;
    else 0. None if no block of the batch ends where its text does."""

    @property
    def first(self) -> torch.Tensor:
        """[m] int64: the first column of the canvas."""
        if self.spans.rows is None:
            return self.known - self.start
        return (self.known - self.start).clamp(min=0).minimum(self.length)

    @property
    def begins(self) -> torch.Tensor:
        """[m] bool: the step is the first one of its block."""
        return self.active & (self.step == 0)

    @property
    def column(self) -> torch.Tensor:
        """[width] int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @property
    def position(self) -> torch.Tensor:
        """[m, width] int64: absolute positions."""
        return self.start.unsqueeze(1) + self.column

    @property
    def request(self) -> torch.Tensor:
        """[rows] int64: index in the batch of the request of each row of logits."""
        block, rows = self.cell[0], self.spans.rows
        return block if rows is None else rows.owner[block]

    @property
    def kept_at(self) -> torch.Tensor:
        """[m, width] int64: as `kept`, of the positions of blocks."""
        own = self.column.expand(len(self.tokens), -1)
        return own if self.kept is None else self.kept

    @property
    def kept_blocks(self) -> tuple[Places, Kept]:
        """Where the blocks are kept, and what is kept of them."""
        places = Places(self.slot, self.place, self.kept)
        return places, Kept(self.tokens, self.decided_at, self.step, self.post_steps)

    def of_blocks(self, values: torch.Tensor) -> torch.Tensor:
        """[n] of the requests -> [m] of their blocks."""
        rows = self.spans.rows
        return values if rows is None else values[rows.owner]

    def of_requests(self, values_np: np.ndarray) -> np.ndarray:
        """[n] of the requests -> [m] of their blocks, on the CPU."""
        rows = self.spans.rows
        return values_np if rows is None else values_np[rows.owner_np]

    def rows_of(self, chosen: np.ndarray) -> torch.Tensor:
        """[k] int64: the rows of logits that belong to some of the requests.

        Args:
            chosen: [n] bool, on the CPU.
        """
        chosen = self.of_requests(chosen)
        if self.rows_np is None:
            return torch.from_numpy(chosen)[self.cell[0]].nonzero().squeeze(1)
        rows = np.flatnonzero(np.repeat(chosen, self.rows_np))
        return async_tensor_h2d(rows, self.tokens.device)

    def guided_rows(self) -> torch.Tensor:
        """[k] int64: the rows of logits of guided requests; some request is one."""
        assert self.spans.branches is not None
        return self.rows_of(self.spans.branches.guided_np)

    def spread(self, *values: torch.Tensor) -> list[torch.Tensor]:
        """[rows] of `cell` -> [m, width], zeros elsewhere; of each of `values`."""
        return spread(self.cell, self.tokens.shape, *values)

    def write(self, where: torch.Tensor, tokens: torch.Tensor) -> None:
        """Put `tokens` where `where` says, in place; both [m, width]."""
        blocks = self.step, self.tokens, self.masked, self.decided_at
        write(where, tokens, *blocks)

    def move(self, source: torch.Tensor) -> None:
        """Give each position what another one holds.

        source: [m, width] int64: its column; -1 for a mask.
        """
        column = source.clamp(min=0)
        self.tokens = self.tokens.gather(1, column)
        self.masked = self.masked.gather(1, column) | (source < 0)
        self.decided_at = self.decided_at.gather(1, column)

    def shorten(self, length: torch.Tensor) -> None:
        """End the blocks earlier; length: [m] int64, at most what it was."""
        self.length = length
        inside = self.column < length.unsqueeze(1)
        self.masked, self.editable = self.masked & inside, self.editable & inside

    def blocks_of(self, index: int) -> range:
        """Rows of request `index` in [m, width]."""
        rows = self.spans.rows
        if rows is None:
            return range(index, index + 1)
        begin = int(rows.begin_np[index])
        return range(begin, begin + int(rows.sizes_np[index]))

    def canvas_of(self, index: int, values: torch.Tensor) -> torch.Tensor:
        """Those of [m, width] that lie in the canvas of request `index`, from its first
        position that is not known to the end of its blocks."""
        first, length = self.first.tolist(), self.length.tolist()
        return torch.cat(
            [
                values[block, first[block] : length[block]]
                for block in self.blocks_of(index)
            ]
        )

    def sequence(self, index: int, all_token_ids: torch.Tensor) -> torch.Tensor:
        """The tokens of request `index` up to the end of its blocks; -1 for a mask.

        Args:
            all_token_ids: [num_slots, max_len], known tokens of all slots.
        """
        block = self.blocks_of(index).start
        head = all_token_ids[self.slot[block], : int(self.known[block])].long()
        tokens = self.tokens.masked_fill(self.masked, -1)
        return torch.cat([head, self.canvas_of(index, tokens)])
