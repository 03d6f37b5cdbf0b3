"""Block-causal attention: a position sees its own block and those before it.

A query at position p sees the keys of its own block and of all blocks before it. So a
span of k blocks is handed to the backend as k rows of `block` queries each, where row j
ends at the end of its block: its keys are those of the earlier blocks (from the cache,
or written by this same forward) and its own. A last block that ends with the answer is
a row of fewer queries.
"""

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.config import DllmConfig
from vllm_dllm.ops.spans import block_rows, of_rings
from vllm_dllm.params import MAX_BUFFER_SIZE
from vllm_dllm.plans.base import Plan
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.spans.base import Layout
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.buffers import Buffers
from vllm_dllm.worker.spans.rows import AttentionRows, whole_rows


class BlockCausalLayout(Layout):
    def __init__(
        self,
        config: DllmConfig,
        num_slots: int,
        device: torch.device,
        buffers: Buffers,
    ) -> None:
        super().__init__(config, num_slots, device, buffers)
        self.block_size = config.block
        self.room = torch.ones(num_slots, dtype=torch.int64, device=device)
        """Positions of the blocks in flight."""

    @staticmethod
    def max_rows(config: DllmConfig, max_num_reqs: int, max_num_tokens: int) -> int:
        # Each request may have a block that is not a whole one.
        return (max_num_tokens + max_num_reqs * (config.block - 1)) // config.block

    @staticmethod
    def max_logit_rows(
        config: DllmConfig, max_num_reqs: int, max_num_tokens: int
    ) -> int:
        most = max_num_reqs * config.block * MAX_BUFFER_SIZE
        return min(max_num_tokens, most)

    def add_request(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        super().add_request(slot, decoding, plan)
        self.room[slot] = int(self.buffers.size_np[slot]) * self.block_size

    def queries_of_rows(
        self, slot_np: np.ndarray, num_tokens_np: np.ndarray, of_requests: int | None
    ) -> int | None:
        # Prefilled or not, and however many blocks: a row is a block.
        are_whole = not (num_tokens_np % self.block_size).any()
        return self.block_size if are_whole else None

    def are_met(self, spans: SpanBatch) -> torch.Tensor:
        # Not the next block, which comes after one that has ended.
        return spans.block_start + spans.block_length <= spans.end

    def complete(self, spans: SpanBatch, input_batch: InputBatch) -> SpanBatch:
        if self.buffers.has_several.any_of(spans.slot_np):
            sizes_np = self.buffers.size_np[spans.slot_np]
            places = self.buffers.size[spans.slot]
            first = torch.where(
                places > 1, self.buffers.first[spans.slot], spans.block_start
            )
            left_np = self.buffers.left_np(input_batch, len(spans))
            spans.rows = self.block_rows(spans, sizes_np, left_np, first, places)
        return spans

    def token_ids(
        self, spans: SpanBatch, blocks: torch.Tensor, all_token_ids: torch.Tensor
    ) -> torch.Tensor:
        of_tokens = spans.owner, spans.position, spans.slot, spans.shown
        return of_rings(*of_tokens, self.room, blocks, all_token_ids)

    def attention_rows(
        self, input_batch: InputBatch, num_reqs: int, spans: SpanBatch | None
    ) -> AttentionRows:
        return block_causal_rows(input_batch, num_reqs, self.block_size)

    def next_start(self, spans: SpanBatch, count: torch.Tensor) -> torch.Tensor:
        # Blocks of nothing but known tokens have become final: those before the block
        # under denoising, or what a chunk of them, which ends where one does, went to.
        return torch.minimum(spans.end, spans.block_start)


def block_causal_rows(
    input_batch: InputBatch, num_reqs: int, block: int
) -> AttentionRows:
    """Rows of a batch of spans, in the order of their tokens.

    Every span begins where a block does; only its last block may be shorter.
    """
    num_tokens = input_batch.num_scheduled_tokens[:num_reqs]
    seq_lens = input_batch.seq_lens[:num_reqs]
    rows = whole_rows(input_batch, num_reqs, seq_lens)
    if rows.max_query_len <= block:
        return rows
    query_start, on_device, owner, ends = block_rows(
        rows.query_start_device, num_tokens, seq_lens, block
    )
    return AttentionRows(
        query_start=query_start,
        query_start_device=on_device,
        owner=owner,
        seq_lens=ends,
        max_query_len=block,
        max_seq_len=rows.max_seq_len,
    )
