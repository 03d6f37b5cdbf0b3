"""Canvas: the block under denoising of every request slot, and its parameters.

Slot-indexed tensors, as in vLLM's `RequestState`: a request owns one slot while it runs
on the worker. Columns of a row are the positions of the block that the request is
denoising; those left of its known tokens are not read.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_dllm.request import DllmParams


@dataclass
class CanvasBatch:
    """The blocks of the `n` requests of a step, gathered from their slots."""

    slot: torch.Tensor
    """[n] int64."""
    known: torch.Tensor
    """[n] int64: number of known tokens."""
    active: torch.Tensor
    """[n] bool: whether the request's span has a canvas; False in a prefill chunk."""
    tokens: torch.Tensor
    """[n, block] int64; undefined left of the known tokens."""
    masked: torch.Tensor
    """[n, block] bool: positions of the canvas that are still masks."""
    cell: tuple[torch.Tensor, torch.Tensor]
    """Index into [n, block] of the positions that logits are computed for: [rows],
    [rows] int64. Holds all of `masked`."""


@dataclass
class SavedBlock:
    """The denoising state of a request that has no slot."""

    tokens: torch.Tensor
    """[block] int64."""
    step: int


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
        self.step = torch.zeros(num_slots, dtype=torch.int64, device=device)

        # Set by add_request.
        self.threshold = torch.zeros(num_slots, device=device)
        self.steps = torch.ones(num_slots, dtype=torch.int64, device=device)
        self.max_len = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Known tokens (prompt and answer) at which the request ends."""
        self.algorithm = np.full(num_slots, "", dtype=object)

        self._suspended: dict[str, SavedBlock] = {}

    def add_request(
        self, req_id: str, slot: int, params: DllmParams, max_len: int
    ) -> None:
        """Start the request's first block, or go on where it was preempted."""
        self.threshold[slot] = params.threshold
        self.steps[slot] = params.steps
        self.max_len[slot] = max_len
        self.algorithm[slot] = params.algorithm
        saved = self._suspended.pop(req_id, None)
        if saved is None:
            self.tokens[slot] = self.mask_token_id
            self.step[slot] = 0
        else:
            self.tokens[slot] = saved.tokens
            self.step[slot] = saved.step

    def gather(
        self, slot: torch.Tensor, known: torch.Tensor, active: torch.Tensor
    ) -> CanvasBatch:
        """The blocks of a step; arguments as in `CanvasBatch`."""
        tokens = self.tokens[slot]
        column = torch.arange(self.block, device=slot.device)
        in_canvas = active.unsqueeze(1) & (column >= (known % self.block).unsqueeze(1))
        masked = in_canvas & (tokens == self.mask_token_id)
        if slot.device.type == "cpu":
            request, position = masked.nonzero(as_tuple=True)
        else:
            # The logits of all positions: how many are masks is known on the device
            # alone, and to wait for the number costs more than the rows it saves.
            index = torch.arange(masked.numel(), device=slot.device)
            request, position = index // self.block, index % self.block
        return CanvasBatch(slot, known, active, tokens, masked, (request, position))

    def suspend(self, req_id: str, slot: int) -> None:
        """Keep the block of a request that is about to lose its slot.

        Positions decoded out of order are not known to the scheduler. Masking them
        again would decode them in another order, and so to other tokens.
        """
        self._suspended[req_id] = SavedBlock(
            self.tokens[slot].clone(), int(self.step[slot])
        )

    def forget(self, req_id: str) -> None:
        """Drop what was kept for a request that has ended."""
        self._suspended.pop(req_id, None)
