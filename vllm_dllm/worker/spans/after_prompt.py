"""Block-causal from the end of the prompt on, which is one unit (D2F).

A span is a row of attention for each unit that it holds a part of: the prompt, and the
blocks behind it. Each row ends at the end of its unit, and sees the keys up to there.
"""

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.config import DllmConfig
from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.plans.base import Plan
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.spans.base import Layout
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.buffers import Buffers
from vllm_dllm.worker.spans.rows import AttentionRows


class AfterPromptLayout(Layout):
    def __init__(
        self,
        config: DllmConfig,
        num_slots: int,
        device: torch.device,
        buffers: Buffers,
    ) -> None:
        super().__init__(config, num_slots, device, buffers)
        self.is_own = torch.zeros(num_slots, dtype=torch.bool, device=device)
        """Whether the slot's request is laid out here."""
        self.is_own_np = np.zeros(num_slots, dtype=bool)
        self.origin_np = np.zeros(num_slots, dtype=np.int64)
        """Length of the prompt, on the CPU."""

    @staticmethod
    def max_rows(config: DllmConfig, max_num_reqs: int, max_num_tokens: int) -> int:
        return max_num_tokens  # blocks are as short as requests want them

    @staticmethod
    def max_logit_rows(
        config: DllmConfig, max_num_reqs: int, max_num_tokens: int
    ) -> int:
        return max_num_tokens

    def add_request(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        super().add_request(slot, decoding, plan)
        assert isinstance(plan, AfterPrompt)
        self.is_own[slot] = self.is_own_np[slot] = True
        self.origin_np[slot] = plan.grid.origin

    def pass_by(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        super().pass_by(slot, decoding, plan)
        self.is_own[slot] = self.is_own_np[slot] = False

    def is_uniform(self, slot_np: np.ndarray) -> bool:
        return not self.is_own_np[slot_np].any()

    def complete(self, spans: SpanBatch, input_batch: InputBatch) -> SpanBatch:
        slot, slot_np = spans.slot, spans.slot_np
        start_np, end_np = _ends_of(input_batch, len(spans))
        # A step begins in the prompt, or with what it repeats before its first block.
        first_np = np.maximum(start_np + self.shift, self.origin_np[slot_np])
        left_np = end_np - first_np
        sizes_np = -(-left_np // self.block_np[slot_np])
        own_np, first = self.is_own_np[slot_np], spans.start + self.shift
        first = torch.maximum(first, self.origin[slot])
        rows = spans.rows = self.block_rows(
            spans,
            np.where(own_np, sizes_np, 1),
            np.where(own_np, left_np, spans.rows_np),
            torch.where(self.is_own[slot], first, spans.block_start),
            self.buffers.size[slot],
        )
        # That of another request may end before its grid says (AdaBlock).
        others = spans.block_length[rows.owner]
        rows.length = torch.where(self.is_own[slot][rows.owner], rows.length, others)
        return spans

    def block_ids(
        self, spans: SpanBatch, slot: torch.Tensor, blocks: torch.Tensor
    ) -> torch.Tensor:
        # Every block of the answer has its own place.
        column = spans.position - self.origin[slot]
        return blocks[slot, column.clamp(0, blocks.shape[1] - 1)]

    def attention_rows(
        self, input_batch: InputBatch, num_reqs: int, spans: SpanBatch | None
    ) -> AttentionRows:
        assert spans is not None
        return AttentionRows.of_table(self.row_table(input_batch, spans), self.device)

    def row_table(self, input_batch: InputBatch, spans: SpanBatch) -> np.ndarray:
        start_np, end_np = _ends_of(input_batch, len(spans))
        slot_np = spans.slot_np
        origin_np, block_np = self.origin_np[slot_np], self.block_np[slot_np]
        behind_np = (start_np - origin_np) // block_np + 1
        # End of the unit that a span begins in.
        border_np = origin_np + np.where(start_np < origin_np, 0, behind_np * block_np)
        border_np = np.minimum(border_np, end_np)
        counts_np = 1 - (border_np - end_np) // block_np
        owner_np = np.repeat(np.arange(len(spans)), counts_np)
        begin_np = counts_np.cumsum() - counts_np
        order_np = np.arange(len(owner_np)) - begin_np[owner_np]
        keys_np = border_np[owner_np] + order_np * block_np[owner_np]
        keys_np = np.minimum(keys_np, end_np[owner_np])
        before_np = np.where(order_np > 0, np.roll(keys_np, 1), start_np[owner_np])
        none_np = np.zeros_like(keys_np)
        return np.stack([owner_np, keys_np - before_np, keys_np, none_np], axis=1)

    def next_start(self, spans: SpanBatch, count: torch.Tensor) -> torch.Tensor:
        # Blocks of nothing but known tokens have become final.
        return self.block_of(spans.slot, spans.known)[0] - self.shift


def _ends_of(input_batch: InputBatch, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Both [n] int64, on the CPU: where the spans of a batch begin and end."""
    start_np = input_batch.num_computed_tokens_np[:n].astype(np.int64)
    return start_np, start_np + input_batch.num_scheduled_tokens[:n]
