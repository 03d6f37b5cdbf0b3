"""CanvasBatch: the blocks under denoising of a step, gathered from their slots."""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.worker.spans.batch import SpanBatch


@dataclass
class CanvasBatch:
    """The blocks of the `n` requests of a step.

    `width` is the length of the longest of them; shorter ones leave columns unused.
    """

    spans: SpanBatch
    step: torch.Tensor
    """[n] int64: steps that the block has already taken."""
    post_steps: torch.Tensor
    """[n] int64: of these, and of this one, how many began without a mask."""
    tokens: torch.Tensor
    """[n, width] int64; undefined left of the known tokens and past the block."""
    masked: torch.Tensor
    """[n, width] bool: positions of the canvas that are still masks."""
    editable: torch.Tensor
    """[n, width] bool: the other positions of the canvas."""
    predicted: torch.Tensor | None
    """[n, width] bool: positions that a row of logits is of; None: all of the canvas.
    The others cannot be written in this step."""
    decided_at: torch.Tensor
    """[n, width] int64: the step of the block that wrote each token."""
    cell: tuple[torch.Tensor, torch.Tensor]
    """Index into [n, width] of the positions that logits are computed for, in their
    order: [rows], [rows] int64. Holds all of `masked` that are predicted."""
    rows_np: np.ndarray | None
    """[n] int64, on the CPU: how many of `cell` are of each request; None where that is
    known on the device alone."""

    @property
    def known(self) -> torch.Tensor:
        """[n] int64: number of known tokens."""
        return self.spans.known

    @property
    def start(self) -> torch.Tensor:
        """[n] int64: first position of the block."""
        return self.spans.block_start

    @property
    def length(self) -> torch.Tensor:
        """[n] int64: number of positions of the block."""
        return self.spans.block_length

    @property
    def active(self) -> torch.Tensor:
        """[n] bool: whether the step decides any of them."""
        return self.spans.decides

    @property
    def first(self) -> torch.Tensor:
        """[n] int64: the first column of the canvas."""
        return self.known - self.start

    @property
    def column(self) -> torch.Tensor:
        """[width] int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)

    @property
    def position(self) -> torch.Tensor:
        """[n, width] int64: absolute positions."""
        return self.start.unsqueeze(1) + self.column

    def rows_of(self, chosen: np.ndarray) -> torch.Tensor:
        """[m] int64: the rows of logits that belong to some of the requests.

        Args:
            chosen: [n] bool, on the CPU.
        """
        if self.rows_np is None:
            return torch.from_numpy(chosen)[self.cell[0]].nonzero().squeeze(1)
        rows = np.flatnonzero(np.repeat(chosen, self.rows_np))
        return async_tensor_h2d(rows, self.tokens.device)

    def guided_rows(self) -> torch.Tensor:
        """[m] int64: the rows of logits of guided requests; some request is one."""
        assert self.spans.branches is not None
        return self.rows_of(self.spans.branches.guided_np)

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """[rows] of `cell` -> [n, width], zeros elsewhere."""
        grid = torch.zeros_like(self.tokens, dtype=rows.dtype)
        grid[self.cell] = rows
        return grid

    def write(self, where: torch.Tensor, tokens: torch.Tensor) -> None:
        """Put `tokens` where `where` says; both [n, width]."""
        self.tokens = torch.where(where, tokens, self.tokens)
        self.masked &= ~where
        self.decided_at = torch.where(where, self.step.unsqueeze(1), self.decided_at)

    def first_mask(self) -> torch.Tensor:
        """[n] int64: the first column that is still a mask; the block's length if none
        is."""
        length = self.length.unsqueeze(1)
        return torch.where(self.masked, self.column, length).amin(dim=1)

    def sequence(self, index: int, all_token_ids: torch.Tensor) -> torch.Tensor:
        """The tokens of request `index` up to the end of its block; -1 for a mask.

        Args:
            all_token_ids: [num_slots, max_len], known tokens of all slots.
        """
        known, first = int(self.known[index]), int(self.first[index])
        head = all_token_ids[self.spans.slot[index], :known].long()
        block = self.tokens[index].masked_fill(self.masked[index], -1)
        return torch.cat([head, block[first : int(self.length[index])]])
