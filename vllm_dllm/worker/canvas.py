"""Canvas: the block under denoising of every request slot, and its parameters.

Slot-indexed tensors, as in vLLM's `RequestState`: a request owns one slot while it runs
on the worker. Columns of a row are the positions of the block that the request is
denoising; those left of its known tokens are not read.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.request import NUMERIC_FIELDS, DllmParams


@dataclass
class CanvasBatch:
    """The blocks of the `n` requests of a step, gathered from their slots."""

    slot: torch.Tensor
    """[n] int64."""
    known: torch.Tensor
    """[n] int64: number of known tokens."""
    active: torch.Tensor
    """[n] bool: whether the request's span has a canvas; False in a prefill chunk."""
    step: torch.Tensor
    """[n] int64: steps that the block has already taken."""
    post_steps: torch.Tensor
    """[n] int64: of these, and of this one, how many began without a mask."""
    tokens: torch.Tensor
    """[n, block] int64; undefined left of the known tokens."""
    masked: torch.Tensor
    """[n, block] bool: positions of the canvas that are still masks."""
    editable: torch.Tensor
    """[n, block] bool: the other positions of the canvas."""
    decided_at: torch.Tensor
    """[n, block] int64: the step of the block that wrote each token."""
    cell: tuple[torch.Tensor, torch.Tensor]
    """Index into [n, block] of the positions that logits are computed for: [rows],
    [rows] int64. Holds all of `masked`."""

    @property
    def first(self) -> torch.Tensor:
        """[n] int64: the first column of the canvas."""
        return self.known % self.tokens.shape[1]

    @property
    def position(self) -> torch.Tensor:
        """[n, block] int64: absolute positions."""
        column = torch.arange(self.tokens.shape[1], device=self.known.device)
        return (self.known - self.first).unsqueeze(1) + column

    def write(self, where: torch.Tensor, tokens: torch.Tensor) -> None:
        """Put `tokens` where `where` says; both [n, block]."""
        self.tokens = torch.where(where, tokens, self.tokens)
        self.masked &= ~where
        self.decided_at = torch.where(where, self.step.unsqueeze(1), self.decided_at)

    def sequence(self, index: int, all_token_ids: torch.Tensor) -> torch.Tensor:
        """The tokens of request `index` up to the end of its block; -1 for a mask.

        Args:
            all_token_ids: [num_slots, max_len], known tokens of all slots.
        """
        known, first = int(self.known[index]), int(self.first[index])
        head = all_token_ids[self.slot[index], :known].long()
        block = self.tokens[index].masked_fill(self.masked[index], -1)
        return torch.cat([head, block[first:]])


@dataclass
class SavedBlock:
    """The denoising state of a request that has no slot."""

    tokens: torch.Tensor
    """[block] int64."""
    decided_at: torch.Tensor
    """[block] int64."""
    step: int
    post_steps: int
    history: tuple[torch.Tensor, torch.Tensor] | None


class Canvas:
    def __init__(
        self, num_slots: int, block: int, mask_token_id: int, device: torch.device
    ) -> None:
        self.block = block
        self.mask_token_id = mask_token_id

        # Set by the sampler, step by step.
        self.tokens = torch.full(
            (num_slots, block), mask_token_id, dtype=torch.int64, device=device
        )
        self.decided_at = torch.zeros_like(self.tokens)
        self.step = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.post_steps = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.history: tuple[torch.Tensor, torch.Tensor] | None = None
        """Tokens and values [num_slots, block, block] of rules that reshape logits
        (decoding/base.py); made when the first request wants it."""

        # Set by add_request.
        self.params = {
            name: torch.zeros(
                num_slots,
                dtype=torch.float32 if kind is float else torch.int64,
                device=device,
            )
            for name, kind in NUMERIC_FIELDS.items()
        }
        self.max_len = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Known tokens (prompt and answer) at which the request ends."""
        self.algorithm = np.full(num_slots, "", dtype=object)
        self.revises = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.traced: set[int] = set()
        """Slots whose request wants to know when its tokens were decided."""

        self._suspended: dict[str, SavedBlock] = {}

    def add_request(
        self, req_id: str, slot: int, params: DllmParams, max_len: int
    ) -> None:
        """Start the request's first block, or go on where it was preempted."""
        rule = get_rule(params.algorithm)
        for name in rule.parameters:
            self.params[name][slot] = getattr(params, name)
        self.max_len[slot] = max_len
        self.algorithm[slot] = params.algorithm
        self.revises[slot] = rule.revises
        self.traced.discard(slot)
        if params.return_trajectory:
            self.traced.add(slot)
        if rule.reshapes and self.history is None:
            shape = (*self.tokens.shape, self.block)
            self.history = (
                self.tokens.new_zeros(shape),
                self.tokens.new_zeros(shape, dtype=torch.float32),
            )
        saved = self._suspended.pop(req_id, None)
        if saved is not None and saved.history is not None and self.history is not None:
            self.history[0][slot], self.history[1][slot] = saved.history
        self.tokens[slot] = self.mask_token_id if saved is None else saved.tokens
        self.decided_at[slot] = 0 if saved is None else saved.decided_at
        self.step[slot] = 0 if saved is None else saved.step
        self.post_steps[slot] = 0 if saved is None else saved.post_steps

    def gather(
        self, slot: torch.Tensor, known: torch.Tensor, active: torch.Tensor
    ) -> CanvasBatch:
        """The blocks of a step; arguments as in `CanvasBatch`."""
        tokens = self.tokens[slot]
        column = torch.arange(self.block, device=slot.device)
        in_canvas = active.unsqueeze(1) & (column >= (known % self.block).unsqueeze(1))
        is_mask = tokens == self.mask_token_id
        masked, editable = in_canvas & is_mask, in_canvas & ~is_mask
        if slot.device.type == "cpu":
            wanted = masked | (editable & self.revises[slot].unsqueeze(1))
            request, position = wanted.nonzero(as_tuple=True)
        else:
            # The logits of all positions: how many are masks is known on the device
            # alone, and to wait for the number costs more than the rows it saves.
            index = torch.arange(masked.numel(), device=slot.device)
            request, position = index // self.block, index % self.block
        began_without_mask = active & ~masked.any(dim=1)
        return CanvasBatch(
            slot=slot,
            known=known,
            active=active,
            step=self.step[slot],
            post_steps=self.post_steps[slot] + began_without_mask,
            tokens=tokens,
            masked=masked,
            editable=editable,
            decided_at=self.decided_at[slot],
            cell=(request, position),
        )

    def scatter(self, batch: CanvasBatch, finished: torch.Tensor) -> None:
        """Store the blocks after a step; those in `finished` make room for the next.

        Args:
            finished: [n] bool: every token of the block was handed out.
        """
        slot = batch.slot
        self.tokens[slot] = batch.tokens.masked_fill(
            finished.unsqueeze(1), self.mask_token_id
        )
        self.decided_at[slot] = batch.decided_at
        self.step[slot] = (batch.step + batch.active).masked_fill(finished, 0)
        self.post_steps[slot] = batch.post_steps.masked_fill(finished, 0)

    def suspend(self, req_id: str, slot: int) -> None:
        """Keep the block of a request that is about to lose its slot.

        Positions decoded out of order are not known to the scheduler. Masking them
        again would decode them in another order, and so to other tokens.
        """
        self._suspended[req_id] = SavedBlock(
            self.tokens[slot].clone(),
            self.decided_at[slot].clone(),
            int(self.step[slot]),
            int(self.post_steps[slot]),
            self.history
            and (self.history[0][slot].clone(), self.history[1][slot].clone()),
        )

    def forget(self, req_id: str) -> None:
        """Drop what was kept for a request that has ended."""
        self._suspended.pop(req_id, None)
