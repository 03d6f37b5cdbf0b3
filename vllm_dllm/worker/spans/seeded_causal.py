"""Seeded blocks over a causal model: known tokens are rows of causal attention, and the
block under denoising is a row that sees all of itself.

A batch may hold both, and stock backends know one kind of mask at a time. So where both
meet, each known token is a row of its own, with the keys up to itself: exact on every
backend, and dear for a long prompt beside requests that are denoised, whose keys are
read once for each token.
"""

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.config import DllmConfig
from vllm_dllm.progress import StepPlan
from vllm_dllm.worker.spans.base import Layout
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.rows import AttentionRows, whole_rows


class SeededCausalLayout(Layout):
    @staticmethod
    def max_rows(config: DllmConfig, max_num_reqs: int, max_num_tokens: int) -> int:
        return max_num_tokens

    @staticmethod
    def max_logit_rows(
        config: DllmConfig, max_num_reqs: int, max_num_tokens: int
    ) -> int:
        return max_num_tokens  # blocks are as long as requests want them

    def is_uniform(self, slot_np: np.ndarray) -> bool:
        return False  # steps of one length may be of either kind

    def lay_out(self, input_batch: InputBatch, known: torch.Tensor) -> SpanBatch:
        spans = super().lay_out(input_batch, known)
        spans.seeds = spans.leads = spans.decides & (spans.block_start == known)
        spans.first_row = spans.start + spans.seeds
        return spans

    def logit_rows(
        self, spans: SpanBatch, request: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        # A seed is predicted by the row before its own, as by a causal model.
        assert spans.seeds is not None
        return super().logit_rows(spans, request, position - spans.seeds[request].int())

    def block_ids(
        self, spans: SpanBatch, slot: torch.Tensor, blocks: torch.Tensor
    ) -> torch.Tensor:
        column = spans.position - spans.block_start[spans.owner]
        return blocks[slot, column.clamp(0, blocks.shape[1] - 1)]

    def attention_rows(
        self, input_batch: InputBatch, num_reqs: int, spans: SpanBatch | None
    ) -> AttentionRows:
        rows = whole_rows(input_batch, num_reqs, input_batch.seq_lens[:num_reqs])
        causal_np = StepPlan.known_np(input_batch)
        rows.causal = bool(causal_np.all())
        if rows.causal or not causal_np.any():
            return rows
        return mixed_rows(input_batch, causal_np, rows.max_seq_len)

    def next_start(self, spans: SpanBatch, count: torch.Tensor) -> torch.Tensor:
        return torch.where(spans.end <= spans.known, spans.end, spans.start)


def mixed_rows(
    input_batch: InputBatch, causal_np: np.ndarray, max_seq_len: int
) -> AttentionRows:
    """Rows without a causal mask: one for each token of some requests, one for each of
    the others.

    Args:
        causal_np: [n] bool, on the CPU: the former.
    """
    n, device = len(causal_np), input_batch.seq_lens.device
    length_np = input_batch.num_scheduled_tokens[:n].astype(np.int64)
    rows_np = np.where(causal_np, length_np, 1)
    owner_np = np.repeat(np.arange(n), rows_np)
    queries_np = np.where(causal_np, 1, length_np)[owner_np]
    # Rows of a request end one token apart, the last one at the end of the span.
    after_np = rows_np.cumsum()[owner_np] - np.arange(1, len(owner_np) + 1)
    query_start = torch.zeros(len(owner_np) + 1, dtype=torch.int32)
    query_start[1:] = torch.from_numpy(queries_np.cumsum())
    owner = async_tensor_h2d(owner_np, device)
    after = async_tensor_h2d(after_np, device)
    return AttentionRows(
        query_start=query_start,
        query_start_device=async_tensor_h2d(query_start, device),
        owner=owner,
        seq_lens=(input_batch.seq_lens[owner] - after).int(),
        max_query_len=int(queries_np.max()),
        max_seq_len=max_seq_len,
    )
