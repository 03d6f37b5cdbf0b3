"""BlockDiffusionScheduler: vLLM's scheduler, handing out spans instead of tokens.

vLLM's queueing, paging, prefix cache and preemption are used as they are. Three things
are told to it: how long a request's span is (its canvas counts as draft tokens), where
a chunk may end, and how many tokens have final KV after a step.
"""

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
from vllm_dllm.request import PREFIX, plan_of, resolve
from vllm_dllm.span import Plan, Span

MAX_NFE = f"{PREFIX}max_nfe"


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
        self.plans: WeakKeyDictionary[Request, Plan] = WeakKeyDictionary()
        self.spans: dict[str, Span] = {}
        self.refreshed: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        """Start of the block that the last refresh was made for."""
        self.forwards: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        """Denoising forwards of requests that have a budget of them."""
        self.trajectories: WeakKeyDictionary[Request, list[int]] = WeakKeyDictionary()

    def add_request(self, request: Request) -> None:
        # The length check against max_model_len is now one for the canvas; that for
        # the request moves into its token limit, with the same finish reason.
        request.max_tokens = min(
            request.max_tokens, self.max_request_len - request.num_prompt_tokens
        )
        assert request.sampling_params is not None
        extra_args = request.sampling_params.extra_args
        params = resolve(extra_args, self.config, request.max_tokens)
        self.plans[request] = plan_of(
            params, self.config, request.num_prompt_tokens, request.max_tokens
        )
        super().add_request(request)

    def _whole_span(self, request: Request, computed: int) -> Span:
        """What the request wants to forward next."""
        return self.plans[request].span(
            computed, request.num_tokens, self.refreshed.get(request)
        )

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.unplanned_tokens = min(
            self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens
        )
        for request in self.running:
            wanted = self._whole_span(request, request.num_computed_tokens)
            request.spec_token_ids = [-1] * (wanted.end - request.num_tokens)
        return super().schedule(throttle_prefills)

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        # The one hook through which vLLM passes the length of every chunk, before
        # pages are allocated for it. `num_new_tokens` is the length of the whole span
        # or what is left of the step's budget. For a request that is not running yet it
        # stops at the known tokens; the canvas is added here, so that the forward that
        # ends the prefill also takes the first denoising step.
        plan = self.plans[request]
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
            planned = self.plans[request].clip(wanted, length)
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
        traced = self._collect_trajectories(model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        spent: set[str] = set()
        for req_id, planned in self.spans.items():
            request = self.requests.get(req_id)
            if request is None or request.status != RequestStatus.RUNNING:
                continue
            # vLLM counts every emitted token as computed. Here emitting and committing
            # are separate events.
            plan = self.plans[request]
            next_start = plan.next_start(planned, request.num_tokens)
            request.num_computed_tokens = next_start
            self.refreshed[request] = plan.grid.start_of(planned.known)
            if planned.canvas and self._spend_forward(request):
                spent.add(req_id)
        if spent:
            self._end(spent, outputs)
        if traced:
            self._attach_trajectories(traced, outputs)
        return outputs

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: SpecDecodingStats | None,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> SpecDecodingStats | None:
        """Count a denoising step: vLLM's own count ends at the default block, and a
        request may have a longer one."""
        if not self.log_stats:
            return None
        stats = spec_decoding_stats or SpecDecodingStats.new(self.num_spec_tokens)
        stats.num_drafts += 1
        stats.num_draft_tokens += self.spans[request_id].canvas
        stats.num_accepted_tokens += num_accepted_tokens
        return stats

    def _collect_trajectories(self, output: ModelRunnerOutput) -> dict[str, Request]:
        """Keep what the worker says of this step; the requests that it is about."""
        traced: dict[str, Request] = {}
        for req_id, steps in getattr(output, "dllm_trajectories", {}).items():
            if (request := self.requests.get(req_id)) is not None:
                self.trajectories.setdefault(request, []).extend(steps)
                traced[req_id] = request
        return traced

    def _attach_trajectories(
        self, traced: dict[str, Request], outputs: dict[int, EngineCoreOutputs]
    ) -> None:
        """Send the trajectories of requests that end in this step.

        In `kv_transfer_params`, the only free-form field of an answer that vLLM takes
        all the way to the client.
        """
        for of_client in outputs.values():
            for output in of_client.outputs:
                request = traced.get(output.request_id)
                if request is not None and output.finish_reason is not None:
                    steps = self.trajectories[request][: request.num_output_tokens]
                    output.kv_transfer_params = {"dllm_trajectory": steps}

    def _spend_forward(self, request: Request) -> bool:
        """Count a denoising forward; True if it was the last that the request has."""
        params = request.sampling_params
        budget = (params.extra_args or {}).get(MAX_NFE) if params else None
        if budget is None:
            return False
        self.forwards[request] = self.forwards.get(request, 0) + 1
        return self.forwards[request] >= budget

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
                spec_decode_metrics=request.spec_decode_metrics,
                trace_headers=request.trace_headers,
            )
            of_client = outputs.setdefault(request.client_index, EngineCoreOutputs())
            of_client.outputs.append(output)

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        # The canvas stays on the worker; its length follows from the known tokens.
        pass
