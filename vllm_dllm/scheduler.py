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

from vllm_dllm import span
from vllm_dllm.config import DllmConfig
from vllm_dllm.request import PREFIX
from vllm_dllm.span import Span

MAX_NFE = f"{PREFIX}max_nfe"


class BlockDiffusionScheduler(Scheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.block = DllmConfig.of(self.vllm_config.model_config).block_size
        self.max_request_len: int = self.vllm_config.model_config.max_model_len
        # A canvas ends on a block border, which may lie past the longest request.
        self.max_model_len = span.round_up(self.max_request_len, self.block)
        self.unplanned_tokens = 0
        self.spans: dict[str, Span] = {}
        self.forwards: WeakKeyDictionary[Request, int] = WeakKeyDictionary()
        """Denoising forwards of requests that have a budget of them."""
        self.trajectories: WeakKeyDictionary[Request, list[int]] = WeakKeyDictionary()

    def add_request(self, request: Request) -> None:
        # The length check against max_model_len is now one for the canvas; that for
        # the request moves into its token limit, with the same finish reason.
        request.max_tokens = min(
            request.max_tokens, self.max_request_len - request.num_prompt_tokens
        )
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.unplanned_tokens = min(
            self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens
        )
        for request in self.running:
            canvas = span.canvas_length(request.num_tokens, self.block)
            request.spec_token_ids = [-1] * canvas
        return super().schedule(throttle_prefills)

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        # The one hook through which vLLM passes the length of every chunk, before
        # pages are allocated for it. `num_new_tokens` is the length of the whole span
        # or what is left of the step's budget. For a request that is not running yet it
        # stops at the known tokens; the canvas is added here, so that the forward that
        # ends the prefill also takes the first denoising step.
        whole = span.full_span(num_computed_tokens, request.num_tokens, self.block)
        budget = num_new_tokens
        ends_prefill = num_computed_tokens + num_new_tokens == request.num_tokens
        if request.status != RequestStatus.RUNNING and ends_prefill:
            budget = min(whole.length, self.unplanned_tokens)
        length = span.clip(whole, budget, self.block).length
        self.unplanned_tokens -= length
        return length

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        # Runs last in schedule(), before the lengths are added to the counts.
        drafts = scheduler_output.scheduled_spec_decode_tokens
        self.spans.clear()
        for req_id, length in scheduler_output.num_scheduled_tokens.items():
            request = self.requests[req_id]
            whole = span.full_span(
                request.num_computed_tokens, request.num_tokens, self.block
            )
            planned = span.clip(whole, length, self.block)
            self.spans[req_id] = planned
            if planned.canvas:
                drafts[req_id] = [-1] * planned.canvas
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
            request.num_computed_tokens = span.committed(planned, self.block)
            if planned.canvas and self._spend_forward(request):
                spent.add(req_id)
        if spent:
            self._end(spent, outputs)
        if traced:
            self._attach_trajectories(traced, outputs)
        return outputs

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
