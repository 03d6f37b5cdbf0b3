"""Seeded blocks: the last row of a step that makes a block final predicts the first
position of the next one, and nothing else is decided there.

Rows predict the position after their own, so those of a block predict all of it but its
first position, which is known by then.
"""

import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.block_causal import BlockCausalLayout


class SeededLayout(BlockCausalLayout):
    def are_met(self, spans: SpanBatch) -> torch.Tensor:
        return super().are_met(spans) | (spans.block_start == spans.end)

    def lay_out(self, input_batch: InputBatch, known: torch.Tensor) -> SpanBatch:
        spans = super().lay_out(input_batch, known)
        spans.first_row = spans.start + self.shift
        spans.seeds = spans.leads = spans.decides & (spans.block_start == known)
        return spans
