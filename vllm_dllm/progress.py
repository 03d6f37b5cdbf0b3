"""How far requests and steps are, and what clients and /metrics are told of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from vllm_dllm.course import Course
from vllm_dllm.plans.base import Span
from vllm_dllm.report import (
    DEAD_END,
    Draft,
    ForwardCount,
    Rest,
    StepReport,
    StepStats,
    client_params,
)
from vllm_dllm.settled import Decoding


@dataclass
class Progress:
    """What is kept of a request besides what vLLM keeps."""

    course: Course
    decoding: Decoding
    candidates: list[int] = field(default_factory=list)
    """What its last step proposed for the canvas, if it is decoded in runs."""
    forwards: ForwardCount = field(default_factory=ForwardCount)
    trajectory: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    """Absolute positions of what a grammar decided, if it is watched."""
    rest: Rest | None = None
    """Its block after the last step, if it wants to know."""

    def attach(self, request: Request) -> None:
        request.dllm_progress = self

    @staticmethod
    def of(request: Request) -> "Progress":
        progress: Progress = request.dllm_progress
        return progress

    def take(self, report: StepReport, req_id: str) -> None:
        """Keep what the worker says of the request's last step."""
        self.trajectory += report.trajectories.get(req_id, ())
        self.forced += report.forced.get(req_id, ())
        self.rest = report.rests.get(req_id, self.rest)
        self.candidates = report.candidates.get(req_id, self.candidates)

    @property
    def nfe(self) -> int:
        """Denoising forwards that it took."""
        return self.forwards.num_draft_tokens

    @property
    def is_spent(self) -> bool:
        """Whether these are all that it may take."""
        most = self.decoding.max_nfe
        return most is not None and self.nfe >= most

    def is_faster_in(self, step: "StepPlan") -> bool:
        """Whether a step took the threshold of a busy server for it."""
        return step.is_busy and self.decoding.busy_threshold is not None


@dataclass
class StepPlan:
    """What was planned for a step: it comes back with the step's `SchedulerOutput`.

    Then its spans are what was forwarded of each request (course.py). They are for the
    scheduler alone; to workers in other processes go none.
    """

    spans: dict[str, Span]
    """By request id."""
    known: frozenset[str] = frozenset()
    """The requests of which only known tokens are forwarded."""
    is_busy: bool = False
    """Whether the server is: requests that allow it take its lower threshold."""
    started: float = 0.0
    """When the plan was begun."""

    @classmethod
    def plan(cls, spans: dict[str, Span], is_busy: bool = False) -> Self:
        known = (req_id for req_id, span in spans.items() if span.is_known)
        return cls(spans, frozenset(known), is_busy)

    def attach(self, output: SchedulerOutput) -> None:
        output.dllm_plan = self

    @staticmethod
    def of(output: SchedulerOutput) -> "StepPlan":
        """Nothing is planned for the requests of vLLM's own warm-up."""
        plan: StepPlan = getattr(output, "dllm_plan", None) or StepPlan({})
        return plan

    def tell(self, input_batch: Any) -> None:
        """Say to the worker what it needs before the device knows it."""
        input_batch.dllm_known = self.known
        input_batch.dllm_is_busy = self.is_busy

    @staticmethod
    def is_of_busy_server(input_batch: Any) -> bool:
        """`is_busy`; no dummy batch is."""
        return getattr(input_batch, "dllm_is_busy", False)

    @staticmethod
    def known_np(input_batch: Any) -> np.ndarray:
        """[n] bool: of which requests only known tokens are forwarded; none of a
        dummy batch."""
        known = getattr(input_batch, "dllm_known", None)
        if known is None:
            return np.zeros(1, dtype=bool)
        return np.array([req_id in known for req_id in input_batch.req_ids])

    def __reduce__(
        self,
    ) -> tuple[type["StepPlan"], tuple[dict[str, Span], frozenset[str], bool]]:
        return StepPlan, ({}, self.known, self.is_busy)


Followed = Mapping[str, tuple[Request, Progress]]
"""Requests of a step, by their id: all that were not aborted while it ran."""


def annotate(
    outputs: dict[int, EngineCoreOutputs],
    followed: Followed,
    step: StepPlan,
    report: StepReport,
) -> dict[str, Draft]:
    """Add to the answers of a step what clients and /metrics want to know.

    Returns the drafts of running requests that got no answer.
    """
    drafts, finished = dict(report.drafts), []
    stats, committed, busy = None, 0, 0
    for req_id, (_, progress) in followed.items() if step.is_busy else ():
        if step.spans[req_id].canvas and progress.is_faster_in(step):
            progress.forwards.note_busy()
            busy += 1
    for of_client in outputs.values():
        if of_client.scheduler_stats is not None:
            stats = of_client.scheduler_stats.spec_decoding_stats
        for output in of_client.outputs:
            if output.request_id not in followed:
                continue
            request, progress = followed[output.request_id]
            committed += len(output.new_token_ids)
            # With every answer: one that ends at a stop string has no last one.
            output.spec_decode_metrics = progress.forwards
            draft = drafts.pop(output.request_id, None)
            length = request.num_output_tokens
            if is_dead_end(output):
                output.stop_reason = DEAD_END
            if output.finish_reason is not None:
                finished.append((progress.nfe, length))
            params = trace_params(request, progress)
            if progress.forced:
                start = request.num_prompt_tokens
                params |= client_params(forced=[p - start for p in progress.forced])
            if draft is not None and output.finish_reason is None:
                params |= draft_params(request, progress, draft)
            output.kv_transfer_params = params or None
    if stats is not None:
        StepStats(
            seconds=time.monotonic() - step.started,
            requests=stats.num_drafts,
            positions=sum(span.length for span in step.spans.values()),
            canvas=sum(span.canvas for span in step.spans.values()),
            committed=committed,
            revised=report.revised,
            busy=busy,
            finished=finished,
        ).pack(stats)
    return {
        req_id: draft
        for req_id, draft in drafts.items()
        if req_id in followed and followed[req_id][0].status == RequestStatus.RUNNING
    }


def is_dead_end(output: EngineCoreOutput) -> bool:
    """Whether a request ended for what it was handed out: its grammar took none of it.

    Tokens are chosen among those that the grammar allows, so there were none. Errors
    of other kinds end a request without a token.
    """
    return output.finish_reason == FinishReason.ERROR and bool(output.new_token_ids)


def trace_params(request: Request, progress: Progress) -> dict[str, Any]:
    """When the tokens of an answer were decided, as its client wants to know it."""
    wants, rest = progress.decoding, progress.rest
    steps = progress.trajectory[: request.num_output_tokens]
    params = {}
    if wants.return_trajectory and steps:
        params = client_params(trajectory=steps)
    if wants.return_step_maps and steps:
        params["step_maps"] = [step + 1 for step in steps]
    if rest is not None and RequestStatus.is_finished(request.status):
        behind = slice(request.num_tokens - rest.start, None)
        tokens, when = rest.tokens[behind], rest.steps[behind]
        params |= client_params(rest={"token_ids": tokens, "steps": when})
    return params


def draft_params(request: Request, progress: Progress, draft: Draft) -> dict[str, Any]:
    """A draft as a client gets it: positions are those of the answer."""
    start = request.num_prompt_tokens
    room = max(0, start + request.max_tokens - draft.start)
    ends = {min(end, draft.start + room) - start for end in draft.block_ends}
    return client_params(
        draft={
            "offset": draft.start - start,
            "token_ids": draft.tokens[:room],
            "changed": [p - start for p in draft.changed],
            "step": draft.step,
            "block_ends": sorted(ends),
            "nfe": progress.nfe,
        }
    )
