"""Full attention: every position sees the whole sequence.

A span is one row of attention that sees the keys of the whole sequence, from the cache
where the span does not hold them. A guided request has a row for each branch.
"""

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.config import DllmConfig
from vllm_dllm.given import GAP
from vllm_dllm.plans.adaptive import Adaptive
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.spans.base import Layout
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.branches import guided_rows, place_branches
from vllm_dllm.worker.spans.buffers import Buffers
from vllm_dllm.worker.spans.rows import AttentionRows, whole_rows


class FullAttentionLayout(Layout):
    def __init__(
        self,
        config: DllmConfig,
        num_slots: int,
        device: torch.device,
        buffers: Buffers,
    ) -> None:
        super().__init__(config, num_slots, device, buffers)
        self.page = config.facts.page_size
        self.keeps_keys = torch.zeros(num_slots, dtype=torch.bool, device=device)
        """Whether steps read keys of earlier steps."""
        self.seq_len = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Length of each sequence, the suffix included."""
        self.seq_len_np = np.zeros(num_slots, dtype=np.int64)
        self.branch = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Where the unconditional branch lies (plans/base.py); 0 without guidance."""
        self.branch_np = np.zeros(num_slots, dtype=np.int64)
        self.cfg_scale = torch.zeros(num_slots, device=device)
        self.row_seq_lens = torch.zeros(num_slots, dtype=torch.int32, device=device)
        """Keys that each request of a step sees. In one place, where CUDA graphs find
        it."""

    @staticmethod
    def max_rows(config: DllmConfig, max_num_reqs: int, max_num_tokens: int) -> int:
        return 3 * max_num_reqs  # two branches, and what lies between them

    @staticmethod
    def max_logit_rows(
        config: DllmConfig, max_num_reqs: int, max_num_tokens: int
    ) -> int:
        return max_num_tokens  # blocks are as long as requests want them

    def add_request(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        super().add_request(slot, decoding, plan)
        assert isinstance(plan, FullAttention | Adaptive)
        self.keeps_keys[slot] = plan.cache != "none"
        self.seq_len[slot] = self.seq_len_np[slot] = plan.end
        self.branch[slot] = self.branch_np[slot] = plan.branch
        self.cfg_scale[slot] = decoding.cfg_scale

    def pass_by(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        super().pass_by(slot, decoding, plan)
        self.keeps_keys[slot] = False
        self.branch[slot] = self.branch_np[slot] = 0
        self.seq_len[slot] = self.seq_len_np[slot] = 0

    def are_met(self, spans: SpanBatch) -> torch.Tensor:
        # A refresh is whole, or it was planned as a later step of the block before.
        end = self.seq_len[spans.slot] + self.branch[spans.slot]
        return (spans.start > 0) | (spans.end == end)

    def complete(self, spans: SpanBatch, input_batch: InputBatch) -> SpanBatch:
        slot, slot_np = spans.slot, spans.slot_np
        if self.adaptive.adapts_np[slot_np].any():
            self._place_adaptive(spans)
        # A step that decides nothing makes the keys of the block's refresh again, which
        # saw nothing but masks in it.
        spans.shown = torch.where(spans.decides, spans.known, spans.block_start)
        spans.keeps = (spans.start == 0) & self.keeps_keys[slot]
        if self.shift:
            # No row of a cached step predicts the first position of its block, so a
            # refresh decides that one, and nothing else (Fast-dLLM on Dream).
            spans.first_row = spans.start + self.shift
            spans.leads = spans.keeps
        if not self.is_uniform(slot_np):
            branches = spans.branches = place_branches(
                input_batch,
                self.seq_len_np[slot_np],
                self.branch_np[slot_np],
                self.branch[slot],
                self.cfg_scale[slot],
                spans.owner,
            )
            offset = self.branch[slot][spans.owner]
            spans.position = spans.position - offset * branches.unconditional
            spans.rows_np = np.minimum(spans.rows_np, branches.half_np)
        return spans

    def _place_adaptive(self, spans: SpanBatch) -> None:
        """Put the blocks of which one has to find the end where they are."""
        slot, known = spans.slot, spans.known
        adapts = self.adaptive.adapts[slot]
        longest = torch.minimum(known + self.block[slot], self.end[slot])
        end = self.adaptive.end_of(slot, known, longest)
        spans.adapts = True
        spans.block_start = torch.where(adapts, known, spans.block_start)
        spans.block_length = torch.where(adapts, end - known, spans.block_length)

    def is_uniform(self, slot_np: np.ndarray) -> bool:
        return not self.branch_np[slot_np].any()

    def with_given(
        self, spans: SpanBatch, slot: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        hidden = spans.position < self.origin[slot]
        if self.given.any(spans.slot_np):
            given = self.given.at(slot, spans.position)
            ids = torch.where(given == GAP, ids, given)
            hidden |= given != GAP
        if spans.branches is not None:
            hidden &= spans.branches.unconditional
            ids = ids.masked_fill(hidden, self.mask_token_id)
        return ids

    def block_ids(
        self, spans: SpanBatch, slot: torch.Tensor, blocks: torch.Tensor
    ) -> torch.Tensor:
        # A step that decides nothing has masks where the block is.
        block_end = (spans.block_start + spans.block_length) * spans.decides
        column = spans.position - spans.block_start[spans.owner]
        ids = blocks[slot, column.clamp(0, blocks.shape[1] - 1)]
        inside = spans.position < block_end[spans.owner]
        return torch.where(inside, ids, self.mask_token_id)

    def attention_rows(
        self, input_batch: InputBatch, num_reqs: int, spans: SpanBatch | None
    ) -> AttentionRows:
        if spans is not None and spans.branches is not None:
            table = self.row_table(input_batch, spans)
            return AttentionRows.of_table(table, self.device)
        seq_lens = self.row_seq_lens[:num_reqs].copy_(input_batch.seq_lens[:num_reqs])
        rows = whole_rows(input_batch, num_reqs, seq_lens)
        if spans is not None:
            # At least the span itself: requests of vLLM's warm-up have odd lengths.
            of_spans, ends = seq_lens[: len(spans)], self.seq_len[spans.slot]
            torch.maximum(of_spans, ends.int(), out=of_spans)
            longest = int(self.seq_len_np[spans.slot_np].max())
            rows.max_seq_len = max(rows.max_seq_len, longest)
        return rows

    def row_table(self, input_batch: InputBatch, spans: SpanBatch) -> np.ndarray:
        lengths_np = input_batch.num_scheduled_tokens[: len(spans)]
        ends_np = self.seq_len_np[spans.slot_np]
        if spans.branches is None:
            owner_np = np.arange(len(spans))
            none_np = np.zeros_like(owner_np)
            return np.stack([owner_np, lengths_np, ends_np, none_np], axis=1)
        return guided_rows(lengths_np, spans.branches, ends_np, self.page)

    def next_start(self, spans: SpanBatch, count: torch.Tensor) -> torch.Tensor:
        start, known = spans.block_start, spans.known + count
        same_block = self.block_of(spans.slot, known)[0] == start
        if spans.adapts:
            adapts = self.adaptive.adapts[spans.slot]
            same_block = torch.where(adapts, known == start, same_block)
        if spans.met is not None:
            same_block = same_block & spans.met
        return torch.where(same_block & self.keeps_keys[spans.slot], start, 0)
