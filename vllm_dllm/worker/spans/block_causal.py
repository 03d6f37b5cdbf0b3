"""Block-causal attention: a position sees its own block and those before it.

A query at position p sees the keys of its own block and of all blocks before it. So a
span of k blocks is handed to the backend as k rows of `block` queries each, where row j
ends at the end of its block: its keys are those of the earlier blocks (from the cache,
or written by this same forward) and its own.
"""

import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.config import DllmConfig
from vllm_dllm.params import MAX_BUFFER_SIZE
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

    @staticmethod
    def max_rows(config: DllmConfig, max_num_reqs: int, max_num_tokens: int) -> int:
        return max(max_num_tokens // config.block, max_num_reqs)

    @staticmethod
    def max_logit_rows(
        config: DllmConfig, max_num_reqs: int, max_num_tokens: int
    ) -> int:
        most = max_num_reqs * config.block * MAX_BUFFER_SIZE
        return min(max_num_tokens, most)

    def complete(self, spans: SpanBatch, input_batch: InputBatch) -> SpanBatch:
        sizes_np = self.buffers.size_np[spans.slot_np]
        if (sizes_np > 1).any():
            places = self.buffers.size[spans.slot]
            first = torch.where(
                places > 1, self.buffers.first[spans.slot], spans.block_start
            )
            left_np = self.buffers.left_np(input_batch, len(spans))
            spans.rows = self.block_rows(spans, sizes_np, left_np, first, places)
        return spans

    def block_ids(
        self, spans: SpanBatch, slot: torch.Tensor, blocks: torch.Tensor
    ) -> torch.Tensor:
        room = self.buffers.size[slot] * self.block_size
        return blocks[slot, spans.position % room]

    def attention_rows(
        self, input_batch: InputBatch, num_reqs: int, spans: SpanBatch | None
    ) -> AttentionRows:
        return block_causal_rows(input_batch, num_reqs, self.block_size)

    def next_start(self, spans: SpanBatch, known: torch.Tensor) -> torch.Tensor:
        # Blocks of nothing but known tokens have become final.
        end = spans.start + spans.length
        return self.block_of(spans.slot, torch.minimum(end, spans.known))[0]


def block_causal_rows(
    input_batch: InputBatch, num_reqs: int, block: int
) -> AttentionRows:
    """Rows of a batch of spans, in the order of their tokens.

    Every span is a whole number of blocks. A dummy batch (profiling, warm-up) need not
    be; it gets one row per request.
    """
    num_tokens = input_batch.num_scheduled_tokens[:num_reqs]
    seq_lens = input_batch.seq_lens[:num_reqs]
    device = seq_lens.device
    rows = whole_rows(input_batch, num_reqs, seq_lens)
    if (num_tokens == block).all() or (num_tokens % block).any():
        return rows
    rows_per_request = async_tensor_h2d(num_tokens // block, device, torch.int64)
    num_rows = int(num_tokens.sum()) // block
    owner = torch.repeat_interleave(rows_per_request, output_size=num_rows)
    # Rows of a request end `block` apart, the last one at the end of the sequence.
    rows_after = rows_per_request.cumsum(0)[owner] - torch.arange(
        1, num_rows + 1, device=device
    )
    return AttentionRows(
        query_start=torch.arange(num_rows + 1, dtype=torch.int32) * block,
        query_start_device=torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        * block,
        owner=owner,
        seq_lens=(seq_lens[owner] - rows_after * block).to(torch.int32),
        max_query_len=block,
        max_seq_len=rows.max_seq_len,
    )
