"""BlockDiffusionScheduler: vLLM's scheduler, handing out spans instead of tokens.

vLLM's queueing, paging, prefix cache and preemption are used as they are. Three things
are told to it: how long a request's span is (its canvas counts as draft tokens), where
a chunk may end, and where the next span of a request starts.
"""

import time
from dataclasses import replace
from typing import Any

from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from vllm_dllm.config import DllmConfig
from vllm_dllm.course import Course
from vllm_dllm.orphans import end_with_parent
from vllm_dllm.plans.base import Span
from vllm_dllm.progress import Progress, StepPlan, annotate, draft_params
from vllm_dllm.regimes.registry import regime_of
from vllm_dllm.report import StepReport
from vllm_dllm.request import decoding_of, plan_of
from vllm_dllm.runs import NO_RUN, PADDING, Runs, attach, sent_with, up_to_padding
from vllm_dllm.walk import Walker


class BlockDiffusionScheduler(Scheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        end_with_parent()  # the only place of ours in vLLM's engine process
        model_config = self.vllm_config.model_config
        self.config = DllmConfig.of(model_config)
        self.max_request_len: int = model_config.max_model_len
        self.regime = regime_of(self.config.facts)
        self.max_model_len = self.regime.end_of_canvas(
            self.config, self.max_request_len
        )
        self.walker = Walker(self.structured_output_manager, self.num_spec_tokens)
        self.unplanned_tokens = 0
        self.is_busy = False
        self.ending = StepPlan({})
        """The step whose output is being read."""

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
        # What a grammar allows next depends on the tokens of the step before.
        waits = request.use_structured_output
        goes_ahead = self.config.facts.plans_ahead and not waits
        end = request.num_prompt_tokens + request.max_tokens
        course = Course(plan, goes_ahead, end)
        progress = Progress(course, decoding)
        progress.attach(request)
        super().add_request(request)
        request.spec_decode_metrics = progress.forwards

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.unplanned_tokens = min(
            self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens
        )
        for request in self.running:
            course, known = Progress.of(request).course, request.num_tokens
            request.num_computed_tokens = course.ahead(known)
            wanted = course.wanted(request.num_computed_tokens, known)
            request.spec_token_ids = [PADDING] * (wanted.end - known)
        most = self.config.busy_requests
        self.is_busy = most is not None and sum(self.get_request_counts()) > most
        started = time.monotonic()
        output = super().schedule(throttle_prefills)
        StepPlan.of(output).started = started
        return output

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        # The one hook through which vLLM passes the length of every chunk, before
        # pages are allocated for it. `num_new_tokens` is the length of the whole span
        # or what is left of the step's budget. For a request that is not running yet it
        # stops at the known tokens; the canvas is added here, so that the forward that
        # ends the prefill also takes the first denoising step.
        course, known = Progress.of(request).course, request.num_tokens
        plan, wanted = course.plan, course.wanted(num_computed_tokens, known)
        is_new = request.status != RequestStatus.RUNNING
        if request.num_in_flight_tokens > 0 and (is_new or not wanted.length):
            # What it wants next is known when that step is back.
            return 0
        budget = num_new_tokens
        ends_prefill = num_computed_tokens + num_new_tokens == known
        if (is_new and ends_prefill) or self.regime.forwards_whole:
            budget = min(wanted.length, self.unplanned_tokens)
        planned = plan.clip(wanted, budget)
        # Read where vLLM shares pages (compat/pages.py).
        request.dllm_final = plan.next_start(planned, known)
        length = planned.length
        self.unplanned_tokens -= length
        if is_new and length == 0:
            # vLLM 0.33 looks at the requests behind it: none may overtake it, or it
            # waits for as long as shorter ones come.
            self.unplanned_tokens = 0
        return length

    def _preempt_request(
        self, request: Request, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        # A step that is under way counts: the worker keeps what it decides, and does
        # not decide it again.
        super()._preempt_request(request, timestamp)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        # Runs last in schedule(), before the lengths are added to the counts.
        drafts = scheduler_output.scheduled_spec_decode_tokens
        spans: dict[str, Span] = {}
        runs: Runs = {}
        for req_id, length in scheduler_output.num_scheduled_tokens.items():
            request = self.requests[req_id]
            progress, computed = Progress.of(request), request.num_computed_tokens
            course = progress.course
            wanted = course.wanted(computed, request.num_tokens)
            planned = spans[req_id] = course.plan.clip(wanted, length)
            course.begin(planned, computed)
            if planned.canvas:
                # That there are any tells the worker to decide some.
                room = min(planned.canvas, self.num_spec_tokens)
                drafts[req_id] = [PADDING] * room
                if progress.decoding.in_runs:
                    run = self.walker.run_of(request, progress.candidates, room)
                    runs[req_id] = run
                    drafts[req_id][: len(run.tokens)] = run.tokens
            else:
                drafts.pop(req_id, None)
        StepPlan.plan(spans, self.is_busy).attach(scheduler_output)
        attach(runs, scheduler_output)
        super()._update_after_schedule(scheduler_output)

    def get_grammar_bitmask(
        self, scheduler_output: SchedulerOutput
    ) -> GrammarOutput | None:
        if not scheduler_output.has_structured_output_requests:
            return None
        # Rows of bits that a walk filled are with the step already. Of the other
        # requests vLLM fills and sends one for each position that it was told of, and
        # with a large vocabulary a row is long: one of those behind a run is enough.
        runs = sent_with(scheduler_output)
        told = scheduler_output.scheduled_spec_decode_tokens
        lengths = {
            req_id: length
            for req_id, length in scheduler_output.num_scheduled_tokens.items()
            if runs.get(req_id, NO_RUN).bits is None
            and (request := self.requests.get(req_id)) is not None
            and request.use_structured_output
        }
        if not lengths:
            return None
        asked = replace(
            scheduler_output,
            num_scheduled_tokens=lengths,
            scheduled_spec_decode_tokens={
                req_id: up_to_padding(tokens) for req_id, tokens in told.items()
            },
        )
        return super().get_grammar_bitmask(asked)

    def update_from_output(
        self,
        scheduler_output: SchedulerOutput,
        model_runner_output: ModelRunnerOutput,
    ) -> dict[int, EngineCoreOutputs]:
        report = StepReport.of(model_runner_output)
        step = self.ending = StepPlan.of(scheduler_output)
        followed = {
            req_id: (request, Progress.of(request))
            for req_id in step.spans
            if (request := self.requests.get(req_id)) is not None
        }
        for req_id, (request, progress) in followed.items():
            taken = step.spans[req_id] = progress.course.back(request.num_tokens)
            if not taken.canvas:  # its block had ended
                scheduler_output.scheduled_spec_decode_tokens.pop(req_id, None)
        if report.is_worth_sending:
            for req_id, (_, progress) in followed.items():
                progress.take(report, req_id)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for req_id, (request, progress) in followed.items():
            if RequestStatus.is_finished(request.status):
                continue
            taken, course = step.spans[req_id], progress.course
            course.settle(taken, request.num_tokens, report.marks.get(req_id))
            if request.status == RequestStatus.RUNNING:
                set_computed(request, course.start)
            if self.regime.rewrites_known:
                # Were its pages lost now, those of others that hold a part of its block
                # would be found, and written.
                unfinished = not taken.is_known
                own_wish = request.get_skip_reading_prefix_cache()
                request.skip_reading_prefix_cache = unfinished or own_wish
            if taken.canvas and progress.is_spent:
                self._end(request, outputs)
        for req_id, draft in annotate(outputs, followed, step, report).items():
            request, progress = followed[req_id]
            self._hand_out(
                request,
                outputs,
                kv_transfer_params=draft_params(request, progress, draft),
                spec_decode_metrics=progress.forwards,
            )
        return outputs

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        result = super()._update_request_with_output(request, new_token_ids, is_stale)
        if not is_stale:
            # vLLM 0.33 shares pages up to this count as soon as this returns.
            taken = self.ending.spans[request.request_id]
            course = Progress.of(request).course
            set_computed(request, course.next_start(taken, request.num_tokens))
        return result

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: SpecDecodingStats | None,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> SpecDecodingStats | None:
        """Count a denoising step; `annotate` adds the rest of its statistics.
        vLLM's own count ends at the default block, and a request may have a longer
        one."""
        if not self.log_stats:
            return None
        stats = spec_decoding_stats or SpecDecodingStats(self.num_spec_tokens)
        stats.num_drafts += 1
        return stats

    def _end(self, request: Request, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Finish a request for its length, with the tokens it has."""
        status = RequestStatus.FINISHED_LENGTH_CAPPED
        reason = RequestStatus.get_finished_reason(status)
        self._hand_out(request, outputs, finish_reason=reason)
        self.finish_requests(request.request_id, status)

    def _hand_out(
        self, request: Request, outputs: dict[int, EngineCoreOutputs], **fields: Any
    ) -> None:
        """Add an answer of a running request without a new token. It may be the first
        one, with which vLLM expects the figures of the prefill."""
        prefill_stats = request.take_prefill_stats()
        if prefill_stats is not None:
            cached = self.kv_cache_manager.estimate_cached_tokens(request)
            prefill_stats.finalize(cached)
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            events=request.take_events(),
            prefill_stats=prefill_stats,
            trace_headers=request.trace_headers,
            **fields,
        )
        of_client = outputs.setdefault(request.client_index, EngineCoreOutputs())
        of_client.outputs.append(output)


def set_computed(request: Request, start: int) -> None:
    """Set where the next span starts: vLLM counts every emitted token as computed, but
    here emitting and committing are separate events. Behind it vLLM counts what is
    under way."""
    request.num_computed_tokens = start + request.num_in_flight_tokens
