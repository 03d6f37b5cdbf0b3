"""BlockDiffusionScheduler: vLLM's scheduler, handing out spans instead of tokens.

vLLM's queueing, paging, prefix cache and preemption are used as they are. Three things
are told to it: how long a request's span is (its canvas counts as draft tokens), where
a chunk may end, and where the next span of a request starts.
"""

import time
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from vllm_dllm import span
from vllm_dllm.config import DllmConfig
from vllm_dllm.report import Draft, ForwardCount, StepReport, StepStats, client_params
from vllm_dllm.request import decoding_of, plan_of
from vllm_dllm.span import Plan, Span


@dataclass
class Progress:
    """What is kept of a request besides what vLLM keeps."""

    plan: Plan
    max_nfe: int | None
    """Denoising forwards that it may take."""
    refreshed: int | None = None
    """Start of the block that the last refresh was made for."""
    forwards: ForwardCount = field(default_factory=ForwardCount)
    trajectory: list[int] = field(default_factory=list)


class BlockDiffusionScheduler(Scheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model_config = self.vllm_config.model_config
        self.config = DllmConfig.of(model_config)
        self.max_request_len: int = model_config.max_model_len
        if not self.config.facts.full_attention:
            # A canvas ends on a block border, which may lie past the longest request.
            self.max_model_len = span.round_up(self.max_request_len, self.config.block)
        self.unplanned_tokens = 0
        self.planned_at = 0.0
        self.spans: dict[str, Span] = {}
        self.progress: WeakKeyDictionary[Request, Progress] = WeakKeyDictionary()

    def add_request(self, request: Request) -> None:
        # The length check against max_model_len is now one for the canvas; that for
        # the request moves into its token limit, with the same finish reason.
        request.max_tokens = min(
            request.max_tokens, self.max_request_len - request.num_prompt_tokens
        )
        assert request.sampling_params is not None
        decoding = decoding_of(request.sampling_params, self.config, request.max_tokens)
        plan = plan_of(
            decoding, self.config, request.num_prompt_tokens, request.max_tokens
        )
        progress = self.progress[request] = Progress(plan, decoding.max_nfe)
        super().add_request(request)
        request.spec_decode_metrics = progress.forwards

    def _whole_span(self, request: Request, computed: int) -> Span:
        """What the request wants to forward next."""
        progress = self.progress[request]
        return progress.plan.span(computed, request.num_tokens, progress.refreshed)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.unplanned_tokens = min(
            self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens
        )
        for request in self.running:
            wanted = self._whole_span(request, request.num_computed_tokens)
            request.spec_token_ids = [-1] * (wanted.end - request.num_tokens)
        self.planned_at = time.monotonic()
        return super().schedule(throttle_prefills)

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        # The one hook through which vLLM passes the length of every chunk, before
        # pages are allocated for it. `num_new_tokens` is the length of the whole span
        # or what is left of the step's budget. For a request that is not running yet it
        # stops at the known tokens; the canvas is added here, so that the forward that
        # ends the prefill also takes the first denoising step.
        plan = self.progress[request].plan
        wanted = self._whole_span(request, num_computed_tokens)
        budget = num_new_tokens
        ends_prefill = num_computed_tokens + num_new_tokens == request.num_tokens
        waits = request.status != RequestStatus.RUNNING and ends_prefill
        if waits or self.config.facts.full_attention:
            budget = min(wanted.length, self.unplanned_tokens)
        length = plan.clip(wanted, budget).length
        self.unplanned_tokens -= length
        return length

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        # Runs last in schedule(), before the lengths are added to the counts.
        drafts = scheduler_output.scheduled_spec_decode_tokens
        self.spans.clear()
        for req_id, length in scheduler_output.num_scheduled_tokens.items():
            request = self.requests[req_id]
            wanted = self._whole_span(request, request.num_computed_tokens)
            planned = self.progress[request].plan.clip(wanted, length)
            self.spans[req_id] = planned
            if planned.canvas:
                # That there are any tells the worker to decide some.
                drafts[req_id] = [-1] * min(planned.canvas, self.num_spec_tokens)
            else:
                drafts.pop(req_id, None)
        super()._update_after_schedule(scheduler_output)

    def update_from_output(
        self,
        scheduler_output: SchedulerOutput,
        model_runner_output: ModelRunnerOutput,
    ) -> dict[int, EngineCoreOutputs]:
        report = StepReport.of(model_runner_output)
        requests = {req_id: self.requests.get(req_id) for req_id in self.spans}
        for req_id, steps in report.trajectories.items():
            if (traced := requests.get(req_id)) is not None:
                self.progress[traced].trajectory.extend(steps)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        spent: set[str] = set()
        for req_id, planned in self.spans.items():
            request = requests[req_id]
            if request is None or request.status != RequestStatus.RUNNING:
                continue
            # vLLM counts every emitted token as computed. Here emitting and committing
            # are separate events.
            progress = self.progress[request]
            next_start = progress.plan.next_start(planned, request.num_tokens)
            request.num_computed_tokens = next_start
            progress.refreshed = progress.plan.grid.start_of(planned.known)
            budget, forwards = progress.max_nfe, progress.forwards.num_draft_tokens
            if budget is not None and planned.canvas and forwards >= budget:
                spent.add(req_id)
        if spent:
            self._end(spent, outputs)
        self._annotate(outputs, requests, report)
        return outputs

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: SpecDecodingStats | None,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> SpecDecodingStats | None:
        """Count a denoising step; the rest of its statistics is added by `_annotate`.
        vLLM's own count ends at the default block, and a request may have a longer
        one."""
        if not self.log_stats:
            return None
        stats = spec_decoding_stats or SpecDecodingStats(self.num_spec_tokens)
        stats.num_drafts += 1
        return stats

    def _annotate(
        self,
        outputs: dict[int, EngineCoreOutputs],
        requests: dict[str, Request | None],
        report: StepReport,
    ) -> None:
        """Add to the answers of a step what clients and /metrics want to know."""
        drafts, finished = dict(report.drafts), []
        stats, committed = None, 0
        for of_client in outputs.values():
            if of_client.scheduler_stats is not None:
                stats = of_client.scheduler_stats.spec_decoding_stats
            for output in of_client.outputs:
                request = requests.get(output.request_id)
                if request is None:
                    continue
                progress = self.progress[request]
                committed += len(output.new_token_ids)
                # With every answer: one that ends at a stop string has no last one.
                output.spec_decode_metrics = progress.forwards
                draft = drafts.pop(output.request_id, None)
                length = request.num_output_tokens
                if output.finish_reason is not None:
                    finished.append((progress.forwards.num_draft_tokens, length))
                params = {}
                if progress.trajectory:
                    params = client_params(trajectory=progress.trajectory[:length])
                if draft is not None and output.finish_reason is None:
                    params |= self._draft_params(request, draft)
                output.kv_transfer_params = params or None
        for req_id, draft in drafts.items():
            request = requests.get(req_id)
            if request is not None and request.status == RequestStatus.RUNNING:
                output = EngineCoreOutput(
                    request_id=req_id,
                    new_token_ids=[],
                    kv_transfer_params=self._draft_params(request, draft),
                    spec_decode_metrics=self.progress[request].forwards,
                )
                of_client = outputs.setdefault(
                    request.client_index, EngineCoreOutputs()
                )
                of_client.outputs.append(output)
        if stats is not None:
            StepStats(
                seconds=time.monotonic() - self.planned_at,
                requests=stats.num_drafts,
                positions=sum(planned.length for planned in self.spans.values()),
                canvas=sum(planned.canvas for planned in self.spans.values()),
                committed=committed,
                revised=report.revised,
                finished=finished,
            ).pack(stats)

    def _draft_params(self, request: Request, draft: Draft) -> dict[str, Any]:
        """A draft as a client gets it: positions are those of the answer."""
        start = request.num_prompt_tokens
        room = max(0, start + request.max_tokens - draft.start)
        return client_params(
            draft={
                "offset": draft.start - start,
                "token_ids": draft.tokens[:room],
                "changed": [p - start for p in draft.changed],
                "step": draft.step,
                "nfe": self.progress[request].forwards.num_draft_tokens,
            }
        )

    def _end(self, req_ids: set[str], outputs: dict[int, EngineCoreOutputs]) -> None:
        """Finish requests for their length, with the tokens they have."""
        for request in self.finish_requests(
            req_ids, RequestStatus.FINISHED_LENGTH_CAPPED
        ):
            output = EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                events=request.take_events(),
                prefill_stats=request.take_prefill_stats(),
                trace_headers=request.trace_headers,
            )
            of_client = outputs.setdefault(request.client_index, EngineCoreOutputs())
            of_client.outputs.append(output)

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        # The canvas stays on the worker; its length follows from the known tokens.
        pass
