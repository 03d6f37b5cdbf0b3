"""Layout: base of the regimes of attention.

Slot-indexed, as vLLM's `RequestState`. Its arithmetic is that of `plans`, on tensors:
the worker needs no lengths from the scheduler.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.config import DllmConfig
from vllm_dllm.ops.spans import block_of, bounds_of, logit_rows, show_known
from vllm_dllm.plans.base import Plan
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.given import Given
from vllm_dllm.worker.spans.adaptive import AdaptiveBlocks
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.block_rows import BlockRows, lay_rows
from vllm_dllm.worker.spans.buffers import Buffers
from vllm_dllm.worker.spans.rows import AttentionRows
from vllm_dllm.worker.spans.shape import StepShape, same_shape


class Layout(ABC):
    """Lays out the spans of a step, for one regime of attention."""

    def __init__(
        self,
        config: DllmConfig,
        num_slots: int,
        device: torch.device,
        buffers: Buffers,
    ) -> None:
        self.buffers = buffers
        self.mask_token_id = config.mask_token_id
        self.plans_ahead = config.facts.plans_ahead
        self.shift = int(config.facts.shifted_logits)
        """How many rows before its own a position is predicted."""
        self.device = device
        self.origin = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.block = torch.ones(num_slots, dtype=torch.int64, device=device)
        self.end = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """The request's grid of blocks (plans/grid.py)."""
        self.adaptive = AdaptiveBlocks(num_slots, device)
        """Blocks whose ends are found; with full attention some requests have them."""
        self.given = Given(num_slots, device)
        """Tokens behind prompts; with full attention some requests give them."""
        self.block_np = np.ones(num_slots, dtype=np.int64)
        """Its length of a block on the CPU."""
        self._last: tuple[tuple[bytes, ...], StepShape] | None = None
        """The shape of the last step and what it follows from, while no slot has
        changed."""

    @staticmethod
    @abstractmethod
    def max_rows(config: DllmConfig, max_num_reqs: int, max_num_tokens: int) -> int:
        """Rows of attention that no batch exceeds."""

    @staticmethod
    @abstractmethod
    def max_logit_rows(
        config: DllmConfig, max_num_reqs: int, max_num_tokens: int
    ) -> int:
        """Rows of logits that no step exceeds where those of whole blocks are made."""

    def add_request(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        self.origin[slot], self.block[slot], self.end[slot] = plan.grid
        self.block_np[slot] = plan.grid.block
        self._last = None

    def pass_by(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        """Take a slot for a request that another layout lays out (by_plan.py)."""
        Layout.add_request(self, slot, decoding, plan)

    def is_uniform(self, slot_np: np.ndarray) -> bool:
        """Whether each request of a batch is one row of attention, if it forwards no
        more than a block."""
        return True

    def queries_of_rows(
        self, slot_np: np.ndarray, num_tokens_np: np.ndarray, of_requests: int | None
    ) -> int | None:
        """Queries of each row of attention of a step, if all rows have as many: a CUDA
        graph of the whole model may take such a step.

        Args:
            num_tokens_np: [n] int32: positions that each request forwards.
            of_requests: how many that are, if of all as many and none is prefilled.
        """
        return of_requests if self.is_uniform(slot_np) else None

    def block_of(
        self, slot: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """First position and length of the block that holds position `known`; all [n]
        int64."""
        return block_of(slot, known, self.origin, self.block, self.end)

    def lay_out(self, input_batch: InputBatch, known: torch.Tensor) -> SpanBatch:
        """The spans of a batch that the runner has prepared.

        Args:
            known: [n] int64: number of known tokens.
        """
        slot, slot_np = input_batch.idx_mapping, input_batch.idx_mapping_np
        position = input_batch.positions[: input_batch.num_tokens]
        asked = same_shape(input_batch)
        if self._last is None or self._last[0] != asked:
            self._last = asked, StepShape.of(input_batch, self.block_np[slot_np])
        shape = self._last[1]
        start, end = bounds_of(shape.query_start, position)
        block_start, block_length = self.block_of(slot, known)
        spans = SpanBatch(
            slot=slot,
            slot_np=slot_np,
            query_start=shape.query_start,
            start=start,
            end=end,
            known=known,
            shown=known,
            decides=shape.decides,
            decides_np=shape.decides_np,
            block_start=block_start,
            block_length=block_length,
            width=shape.width,
            rows_np=shape.rows_np,
            owner=shape.owner,
            position=position,
        )
        if self.plans_ahead:
            spans.met = self.are_met(spans)
            spans.decides = spans.decides & spans.met
        return self.complete(spans, input_batch)

    def are_met(self, spans: SpanBatch) -> torch.Tensor:
        """[n] bool: as `SpanBatch.met`."""
        return torch.ones_like(spans.decides)

    def complete(self, spans: SpanBatch, input_batch: InputBatch) -> SpanBatch:
        """`spans` with what this layout's requests have besides, or have otherwise."""
        return spans

    def block_rows(
        self,
        spans: SpanBatch,
        sizes_np: np.ndarray,
        left_np: np.ndarray,
        first: torch.Tensor,
        places: torch.Tensor,
    ) -> BlockRows:
        """The blocks of a step; arguments as those of `lay_rows`."""
        slot, block_np = spans.slot, self.block_np[spans.slot_np]
        grids = (self.origin[slot], self.block[slot], self.end[slot])
        return lay_rows(sizes_np, left_np, block_np, grids, first, places)

    def arrange(self, spans: SpanBatch, blocks: torch.Tensor) -> SpanBatch:
        """The same spans, with the order in which positions of blocks are forwarded if
        that is not their own; blocks: as in `token_ids`."""
        return spans

    def token_ids(
        self, spans: SpanBatch, blocks: torch.Tensor, all_token_ids: torch.Tensor
    ) -> torch.Tensor:
        """[num_tokens] int64: known tokens, blocks under denoising, masks.

        Args:
            blocks: [num_slots, positions] int64, those of each slot.
            all_token_ids: [num_slots, max_len], known tokens of all slots.
        """
        slot = spans.slot[spans.owner]
        ids = self.block_ids(spans, slot, blocks)
        of_tokens = spans.owner, spans.position
        show_known(ids, *of_tokens, spans.slot, spans.shown, all_token_ids)
        return self.with_given(spans, slot, ids)

    def with_given(
        self, spans: SpanBatch, slot: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """`ids` with what else is given, or hidden; slot, ids: [num_tokens] int64."""
        return ids

    def block_ids(
        self, spans: SpanBatch, slot: torch.Tensor, blocks: torch.Tensor
    ) -> torch.Tensor:
        """[num_tokens] int64: blocks under denoising, and masks past them, a tensor of
        its own; undefined where `spans.shown` tokens are. Of a layout that has no
        `token_ids` of its own.

        Args:
            slot: [num_tokens] int64; blocks: as in `token_ids`.
        """
        raise NotImplementedError

    @abstractmethod
    def attention_rows(
        self, input_batch: InputBatch, num_reqs: int, spans: SpanBatch | None
    ) -> AttentionRows:
        """What the attention backend is handed; `spans` is None for a dummy batch.

        `num_reqs` is more than the batch has where a CUDA graph is padded.
        """

    def row_table(self, input_batch: InputBatch, spans: SpanBatch) -> np.ndarray:
        """The same as `AttentionRows.of_table` takes it, where a request of another
        layout may be in the batch."""
        raise NotImplementedError

    @abstractmethod
    def next_start(self, spans: SpanBatch, count: torch.Tensor) -> torch.Tensor:
        """First position of the step after this one, as `Plan.next_start`.

        count: [n] int32: tokens that became known -> [n] int64.
        """

    def logit_rows(
        self, spans: SpanBatch, request: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """[rows] int64: the hidden states that predict some positions of the blocks.

        Clamped to the request's own, because a prefill chunk ends before its block, and
        rows of whole blocks (`rows_np`) may go past a shorter last one.

        Args:
            request, position: [rows] int64: index in the batch, absolute position.
        """
        return logit_rows(request, position, spans.query_start, spans.start, self.shift)
