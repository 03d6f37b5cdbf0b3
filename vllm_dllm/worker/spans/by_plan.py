"""Layouts of a server whose requests bring different plans.

Every layout is asked about the whole batch, and its answer is taken for its own
requests; one whose requests are alone in a batch lays it out as if there were no other.
"""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.config import DllmConfig
from vllm_dllm.plans.base import Plan
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.spans.base import Layout
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.buffers import Buffers
from vllm_dllm.worker.spans.rows import AttentionRows


class ByPlan(Layout):
    of_plans: ClassVar[dict[type[Plan], type[Layout]]]
    """In the order in which they complete a step. Plans may share one."""

    def __init__(
        self,
        config: DllmConfig,
        num_slots: int,
        device: torch.device,
        buffers: Buffers,
    ) -> None:
        super().__init__(config, num_slots, device, buffers)
        kinds = list(dict.fromkeys(self.of_plans.values()))
        self.number_of = {
            plan: kinds.index(kind) for plan, kind in self.of_plans.items()
        }
        self.layouts = [kind(config, num_slots, device, buffers) for kind in kinds]
        for layout in self.layouts:
            layout.adaptive, layout.given = self.adaptive, self.given
        self.number_np = np.zeros(num_slots, dtype=np.int64)
        """Which of them each slot's request has, on the CPU."""
        self.number = torch.zeros(num_slots, dtype=torch.int64, device=device)

    @classmethod
    def max_rows(
        cls, config: DllmConfig, max_num_reqs: int, max_num_tokens: int
    ) -> int:
        limits = (config, max_num_reqs, max_num_tokens)
        return max(layout.max_rows(*limits) for layout in cls.of_plans.values())

    @classmethod
    def max_logit_rows(
        cls, config: DllmConfig, max_num_reqs: int, max_num_tokens: int
    ) -> int:
        limits = (config, max_num_reqs, max_num_tokens)
        return max(layout.max_logit_rows(*limits) for layout in cls.of_plans.values())

    def add_request(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        super().add_request(slot, decoding, plan)
        number = self.number_of[type(plan)]
        self.number[slot] = self.number_np[slot] = number
        for other, layout in enumerate(self.layouts):
            add = layout.add_request if other == number else layout.pass_by
            add(slot, decoding, plan)

    def is_uniform(self, slot_np: np.ndarray) -> bool:
        return all(layout.is_uniform(slot_np) for layout in self.layouts)

    def _present(self, spans: SpanBatch) -> list[int]:
        """The layouts that some request of a batch has."""
        return np.unique(self.number_np[spans.slot_np]).tolist()

    def _choose(
        self,
        spans: SpanBatch,
        number: torch.Tensor,
        ask: Callable[[Layout], torch.Tensor],
    ) -> torch.Tensor:
        """What each layout says of its own requests.

        Args:
            number: [k] int64: whose each of the values is.
        """
        first, *others = self._present(spans)
        values = ask(self.layouts[first])
        for other in others:
            of_other = ask(self.layouts[other])
            values = torch.where(number == other, of_other, values)
        return values

    def are_met(self, spans: SpanBatch) -> torch.Tensor:
        number = self.number[spans.slot]
        return self._choose(spans, number, lambda own: own.are_met(spans))

    def complete(self, spans: SpanBatch, input_batch: InputBatch) -> SpanBatch:
        for number in self._present(spans):
            self.layouts[number].complete(spans, input_batch)
        return spans

    def block_ids(
        self, spans: SpanBatch, slot: torch.Tensor, blocks: torch.Tensor
    ) -> torch.Tensor:
        return self._choose(
            spans, self.number[slot], lambda own: own.block_ids(spans, slot, blocks)
        )

    def with_given(
        self, spans: SpanBatch, slot: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        for number in self._present(spans):
            ids = self.layouts[number].with_given(spans, slot, ids)
        return ids

    def attention_rows(
        self, input_batch: InputBatch, num_reqs: int, spans: SpanBatch | None
    ) -> AttentionRows:
        present = [0] if spans is None else self._present(spans)
        if spans is None or len(present) == 1:
            layout = self.layouts[present[0]]
            return layout.attention_rows(input_batch, num_reqs, spans)
        number_np, tables = self.number_np[spans.slot_np], []
        for number in present:
            table = self.layouts[number].row_table(input_batch, spans)
            tables.append(table[number_np[table[:, 0]] == number])
        rows = np.concatenate(tables)
        rows = rows[rows[:, 0].argsort(kind="stable")]
        return AttentionRows.of_table(rows, self.device)

    def next_start(self, spans: SpanBatch, count: torch.Tensor) -> torch.Tensor:
        return self._choose(
            spans, self.number[spans.slot], lambda own: own.next_start(spans, count)
        )
