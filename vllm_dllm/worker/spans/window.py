"""Window: causal attention, and a window of the canvas that slides (WeDLM).

Of a window, decoded positions are forwarded before masks, each with its own position
id, so that masks see all that is decoded. Attention is causal in that order, and keys
are stored by place in it. The decoded positions that the first mask ends are known
tokens by then; they stand where they belong, and their keys are final.

A window is kept as a ring: position p in column p mod its length, so that nothing
moves when it slides.
"""

from dataclasses import replace

import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.config import DllmConfig
from vllm_dllm.ops.spans import of_rings
from vllm_dllm.worker.spans.base import Layout
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.rows import AttentionRows, whole_rows


class WindowLayout(Layout):
    @staticmethod
    def max_rows(config: DllmConfig, max_num_reqs: int, max_num_tokens: int) -> int:
        return max_num_reqs

    @staticmethod
    def max_logit_rows(
        config: DllmConfig, max_num_reqs: int, max_num_tokens: int
    ) -> int:
        return max_num_tokens  # windows are as long as requests want them

    def block_of(
        self, slot: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return known, torch.minimum(self.block[slot], self.end[slot] - known)

    def arrange(self, spans: SpanBatch, blocks: torch.Tensor) -> SpanBatch:
        column = torch.arange(spans.width, device=self.device)
        kept = self._columns(spans, column)
        tokens = blocks[spans.slot.unsqueeze(1), kept]
        waits = tokens == self.mask_token_id
        waits |= column >= spans.block_length.unsqueeze(1)
        order = waits.long().argsort(dim=1, stable=True)
        owner = spans.owner
        place = spans.position - spans.known[owner]
        inside = order[owner, place.clamp(0, spans.width - 1)]
        moved = spans.block_start[owner] + inside
        return replace(
            spans,
            position=torch.where(place >= 0, moved, spans.position),
            place=order.argsort(dim=1),
            kept=kept,
        )

    def _columns(self, spans: SpanBatch, column: torch.Tensor) -> torch.Tensor:
        """`SpanBatch.kept`; what is right of a shorter window stays there."""
        length = self.block[spans.slot].unsqueeze(1)
        turned = (spans.block_start.unsqueeze(1) + column) % length
        return torch.where(column < length, turned, column)

    def token_ids(
        self, spans: SpanBatch, blocks: torch.Tensor, all_token_ids: torch.Tensor
    ) -> torch.Tensor:
        of_tokens = spans.owner, spans.position, spans.slot, spans.shown
        return of_rings(*of_tokens, self.block, blocks, all_token_ids)

    def attention_rows(
        self, input_batch: InputBatch, num_reqs: int, spans: SpanBatch | None
    ) -> AttentionRows:
        return whole_rows(input_batch, num_reqs, input_batch.seq_lens[:num_reqs])

    def next_start(self, spans: SpanBatch, count: torch.Tensor) -> torch.Tensor:
        # Every token that was known before the step has final keys now.
        return torch.minimum(spans.end, spans.known)

    def logit_rows(
        self, spans: SpanBatch, request: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        assert spans.place is not None
        place = spans.place[request, position - spans.block_start[request]]
        return super().logit_rows(spans, request, spans.known[request] + place)
