"""Buffers: requests that have several blocks under denoising at once.

Source: Diffulex, `multi_bd`; D2F, whose buffer has room for a whole answer. The buffer
of a request holds its blocks from the first one without final KV on, at most `size` of
them. In a step, at most one more is
*opened*: the first one if none is open, else the next one as soon as the last one is
decoded far enough. Only open blocks are decided. A block whose predecessor is not
decoded far enough may be given nothing in a step; the front one always gets a token.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.buffered import Buffered
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.memory import BlockTable
from vllm_dllm.worker.slot_flags import SlotFlags
from vllm_dllm.worker.spans.block_rows import BlockRows, OpenBlocks


@dataclass
class SavedBuffer:
    """That of a request that has no slot."""

    first: int
    opened: int
    stability: torch.Tensor
    """[size] float32."""


class Buffers:
    """A `BlockState`, slot-indexed."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.size_np = np.ones(num_slots, dtype=np.int64)
        """Blocks in flight, on the CPU."""
        self.size = torch.ones(num_slots, dtype=torch.int64, device=device)
        self.has_several = SlotFlags(num_slots)
        """Whether these are more than one."""
        self.begins_np = np.zeros(num_slots, dtype=bool)
        """Whether it takes its first step in this slot."""
        self.begins_at_np = np.zeros(num_slots, dtype=np.int64)
        """First position of the buffer in that step."""
        self.prompt = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Number of tokens of the prompt."""
        self.repeats = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Final positions before the buffer that every step forwards again."""
        self.first = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """First position of the buffer."""
        self.opened = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """End of the last block that was opened."""
        self.add_block = torch.zeros(num_slots, device=device)
        self.token_stability = torch.zeros(num_slots, device=device)
        """The thresholds of params.py."""
        self.stability = BlockTable(num_slots, (1,), torch.float32, device)
        """[num_slots, size] float32: share of the tokens of a block that the last step
        would not have changed."""

    def add_request(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        several = plan if isinstance(plan, Buffered | AfterPrompt) else None
        size = 1 if several is None else several.size
        self.size_np[slot] = self.size[slot] = size
        self.begins_np[slot] = self.has_several[slot] = size > 1
        self.first[slot] = self.opened[slot] = 0
        self.add_block[slot] = decoding.add_block_threshold
        self.token_stability[slot] = decoding.token_stability_threshold
        self.stability.grow(size)
        self.stability.clear(slot)
        if several is not None:
            first, block = several.first(None), several.grid.block
            self.prompt[slot], self.first[slot] = several.prompt, first
            self.begins_at_np[slot] = first
            self.repeats[slot] = plan.repeats if isinstance(plan, AfterPrompt) else 0
            # A block that the prompt begins is open from the start.
            self.opened[slot] = first + (block if several.prompt > first else 0)

    def save(self, slot: int) -> SavedBuffer:
        return SavedBuffer(
            int(self.first[slot]), int(self.opened[slot]), self.stability.save(slot)
        )

    def restore(self, slot: int, saved: SavedBuffer) -> None:
        self.first[slot], self.opened[slot] = saved.first, saved.opened
        self.begins_at_np[slot] = saved.first
        self.stability.restore(slot, saved.stability)

    def left_np(self, input_batch: InputBatch, num_reqs: int) -> np.ndarray:
        """[n] int64, on the CPU: positions from the front of each buffer to the end of
        its span, or more.

        A step begins at the front, or before it in a prompt; but the first one in a
        slot may find pages of another request that go past the front.
        """
        slot_np = input_batch.idx_mapping_np
        start_np = input_batch.num_computed_tokens_np[:num_reqs]
        end_np = start_np + input_batch.num_scheduled_tokens[:num_reqs]
        begins_np = self.begins_np[slot_np]
        decides_np = input_batch.num_draft_tokens_per_req > 0
        self.begins_np[slot_np] = begins_np & ~decides_np
        return end_np - np.where(begins_np, self.begins_at_np[slot_np], start_np)

    def open(
        self,
        slot: torch.Tensor,
        decides: torch.Tensor,
        rows: BlockRows,
        masks: torch.Tensor,
        end: torch.Tensor,
    ) -> OpenBlocks:
        """Open what a step opens, and say what is open then.

        Args:
            slot: [n] int64; decides: [n] bool, whether the step decides anything.
            masks: [m] int64: positions of each block that are not decoded.
            end: [n] int64: end of the request's last block.
        """
        first, opened, size = self.first[slot], self.opened[slot], self.size[slot]
        block, length = rows.block, rows.block[rows.owner]
        decoded = (length - masks) / length
        # The first row is of a block before the buffer where the KV was lost.
        last = rows.begin + (opened - rows.start[rows.begin]) // block - 1
        last = last.clamp(min=0)
        stability = self.stability.values[slot[rows.owner], rows.place]
        nothing_open = opened == first
        goes_on = (opened - first < size * block) & (
            decoded[last] >= self.add_block[slot]
        )
        goes_on &= stability[last] >= self.token_stability[slot]
        opens = decides & (size > 1) & (opened < end) & (nothing_open | goes_on)
        opened = opened + block * opens
        self.opened[slot] = opened
        return OpenBlocks(
            is_open=(rows.start < opened[rows.owner]) | (size == 1)[rows.owner],
            before=torch.where(rows.is_front, 1.0, decoded.roll(1)),
            holds_prompt=rows.start < self.prompt[slot][rows.owner],
        )

    def settle(
        self,
        slot: torch.Tensor,
        place: torch.Tensor,
        stability: torch.Tensor,
        has_canvas: torch.Tensor,
        is_open: torch.Tensor,
    ) -> None:
        """Remember how stable the `m` blocks of a step are, which was taken.

        One that all has left of stays as it was; one that is not open has no tokens.

        Args:
            slot, place: [m] int64, where a block is kept.
            stability: [m] float32.
            has_canvas, is_open: [m] bool.
        """
        had = self.stability.values[slot, place]
        found = torch.where(has_canvas, stability, had)
        self.stability.values[slot, place] = torch.where(is_open, found, 0.0)

    def advance(self, slot: torch.Tensor, next_start: torch.Tensor) -> None:
        """Blocks whose KV is final leave the buffer; both [n] int64."""
        first = next_start + self.repeats[slot]
        self.first[slot] = torch.maximum(self.first[slot], first)
