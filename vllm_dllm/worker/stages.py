"""Stages: pipeline parallelism, where only the last stage has logits.

Every stage keeps the blocks of all requests. The last one decides what a step writes;
the others get the decision, and apply it to their own, before they forward the next
step of one of its requests. Until then they forward steps of other requests.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from vllm.sequence import IntermediateTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.pp_utils import PPHandler

from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.decision import StepDecision
from vllm_dllm.worker.sampler import DenoisingSampler
from vllm_dllm.worker.spans.batch import SpanBatch


@dataclass
class PendingStep:
    """A step of which this stage has done its part, and not yet heard the decision."""

    spans: SpanBatch
    batch: CanvasBatch | None
    """None where the step decides nothing."""
    decision: StepDecision | None
    works: list[dist.Work]
    """What has to arrive before the decision can be read."""


class Stages:
    """Takes the place of vLLM's `PPHandler`, which brings tokens to the other stages.

    Tokens are not enough here: what was decided behind a mask is not handed out yet.
    """

    def __init__(
        self,
        handler: PPHandler,
        sampler: DenoisingSampler,
        postprocess: Callable[..., None],
    ) -> None:
        """
        Args:
            handler: vLLM's, whose process group and streams are used.
            postprocess: the runner's `postprocess_sampled`.
        """
        self.last_rank = handler.last_rank
        self.group = handler.broadcast_group
        self.stream = handler.broadcast_stream
        self.main_stream = handler.main_stream
        self.sampler = sampler
        self.postprocess = postprocess
        self.pending: deque[PendingStep] = deque()
        self.sent: list[dist.Work] = []
        """What is on its way from the last stage."""
        if handler.is_last_rank:
            sampler.publish = self.send

    def send(self, decision: StepDecision) -> None:
        """The last stage: bring a decision to the others."""
        for work in self.sent:
            work.wait()
        self.sent = self._broadcast(decision)

    def receive(self, input_batch: InputBatch, recv_drafts: bool = False) -> bool:
        """The other stages: expect the decision of a step that was just forwarded.

        Drafts besides the canvas, of which vLLM 0.33 tells, there are none.
        """
        spans = SpanBatch.of(input_batch)
        assert spans is not None
        batch, decision, works = None, None, []
        if input_batch.num_draft_tokens > 0:
            batch, _ = self.sampler.gather(spans)
            decision = self.sampler.room_for_decision(batch)
            works = self._broadcast(decision)
        self.pending.append(PendingStep(spans, batch, decision, works))
        return True

    def settle(self, slots: set[int]) -> None:
        """The other stages: apply the decisions about the requests of `slots`, and all
        that came before them."""
        concerned = [
            index
            for index, step in enumerate(self.pending)
            if not slots.isdisjoint(step.spans.slot_np.tolist())
        ]
        for _ in range(concerned[-1] + 1 if concerned else 0):
            self._apply(self.pending.popleft())

    def _apply(self, step: PendingStep) -> None:
        spans = step.spans
        if step.batch is None or step.decision is None:
            output = self.sampler.commit_only(spans)
        else:
            for work in step.works:
                work.wait()
            output = self.sampler.follow(step.decision, step.batch)
        self.postprocess(
            spans.slot,
            output.sampled_token_ids,
            output.num_sampled,
            output.num_rejected,
        )

    def _broadcast(self, decision: StepDecision) -> list[dist.Work]:
        works = []
        with torch.cuda.stream(self.stream):
            self.stream.wait_stream(self.main_stream)
            for field in fields(decision):
                tensor: torch.Tensor | None = getattr(decision, field.name)
                if tensor is None:
                    continue
                if tensor.dtype == torch.bool:  # which not every backend sends
                    tensor = tensor.view(torch.uint8)
                work = dist.broadcast(
                    tensor, src=self.last_rank, group=self.group, async_op=True
                )
                works.append(work)
        return works

    # The rest of what the runner asks of a `PPHandler`.

    def get_prev_sampled_outputs(self, *drafts: Any) -> None:
        """Decisions are applied in `settle`."""

    def broadcast(self, *sampled: Any) -> None:
        """Decisions travel in `send`."""

    def broadcast_drafts(self, *drafts: Any) -> None:
        """There are none besides the canvas."""

    def on_req_idx_freed(self, req_idx: int) -> None:
        """No slot is freed before its decisions were applied."""

    def relay_aux_hidden_states(
        self, received: IntermediateTensors | None, sent: IntermediateTensors
    ) -> IntermediateTensors:
        return sent
