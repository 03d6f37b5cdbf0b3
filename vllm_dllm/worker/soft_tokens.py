"""Soft tokens: how much of a decoded token the model is shown, by slot.

Rules that soften show the tokens of the block under denoising as mixtures of their
embeddings and the mask's (ops/mixture.py), so the model sees how sure it was of them.
Known tokens are always shown whole.
"""

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.memory import BlockTable
from vllm_dllm.worker.slot_flags import SlotFlags
from vllm_dllm.worker.spans.batch import SpanBatch

WHOLE = -1.0
"""The share of a position that is shown as it is: a known token, or a mask."""


class SoftTokens:
    """A `BlockState`. Blocks of requests that have any are under denoising one at a
    time."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.device = device
        self.has_any = SlotFlags(num_slots)
        """The slots whose rule softens."""
        self.share = BlockTable(num_slots, (1,), torch.float32, device, fill=WHOLE)
        """[num_slots, width]: confidence of each decoded token in the last step; as
        wide as the blocks of such requests alone."""

    def add_request(self, slot: int, decoding: Decoding, block: int) -> None:
        """`block`: length of the request's blocks."""
        self.has_any[slot] = softens = get_rule(decoding.algorithm).softens
        if softens:
            self.share.grow(block)
        self.share.clear(slot)

    def save(self, slot: int) -> torch.Tensor:
        return self.share.save(slot)

    def restore(self, slot: int, saved: torch.Tensor) -> None:
        self.share.restore(slot, saved)

    def are_in(self, slot_np: np.ndarray) -> bool:
        """Whether a request of a batch may have some."""
        return self.has_any.any_of(slot_np)

    def shares(self, spans: SpanBatch) -> torch.Tensor:
        """[num_tokens] float32: what is shown of each token of a step."""
        owner, position = spans.owner, spans.position
        last = self.share.values.shape[1] - 1
        column = position - spans.block_start[owner]
        kept = self.share.values[spans.slot[owner], column.clamp(0, last)]
        is_kept = (position >= spans.shown[owner]) & (column <= last)
        return kept.masked_fill(~is_kept, WHOLE)

    def settle(
        self,
        batch: CanvasBatch,
        write: torch.Tensor,
        candidate: torch.Tensor,
        confidence: torch.Tensor,
        finished: torch.Tensor,
    ) -> None:
        """Remember how sure a step, which was taken, is of the tokens that are there.

        Args:
            write: [m, width] bool; candidate: [m, width] int64.
            confidence: [m, width] float32, of the candidates.
            finished: [m] bool: blocks that make room for the next.
        """
        slot_np = batch.slot_np
        if not self.are_in(slot_np):
            return
        rows = async_tensor_h2d(np.flatnonzero(self.has_any.of(slot_np)), self.device)
        width = min(self.share.values.shape[1], batch.tokens.shape[1])
        there = (batch.editable | write) & (batch.tokens == candidate)
        slot = batch.slot[rows]
        share = self.share.values[slot, :width]
        share = torch.where(there[rows, :width], confidence[rows, :width], share)
        share = share.masked_fill(finished[rows].unsqueeze(1), WHOLE)
        self.share.values[slot, :width] = share
