"""The engines of the tests, and the one that is alive in this process.

A start takes seconds, so tests name an engine (`@uses("sdar16")`) and share it;
conftest.py orders them so that each engine is started once.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.forked import forked_engines
from tests.golden_cases import GOLDEN, Case
from tests.in_process import in_this_process
from tests.servers import Server
from tests.specs import COMMON, EngineSpec
from tests.watchdog import watched

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

Request = tuple[Case, dict[str, Any]]
"""A case, and sampling parameters that override its own."""


def uses(*names: str) -> pytest.MarkDecorator:
    """Run the test once on each of these engines of `OFFLINE` (fixture `engine`)."""
    return pytest.mark.parametrize("engine", names, indirect=True)


def uses_server(*names: str) -> pytest.MarkDecorator:
    """Run the test once on each of these servers (fixture `server`)."""
    return pytest.mark.parametrize("server", names, indirect=True)


class Engine:
    """An offline engine, and what tests look at inside its workers."""

    def __init__(self, spec: EngineSpec) -> None:
        from vllm import LLM

        self.spec = spec
        self.numbers = count()
        self.in_process = spec.ranks == 1
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = spec.cores
        options = COMMON | spec.options
        with ExitStack() as undo:
            if self.in_process:
                undo.enter_context(in_this_process())
                options["distributed_executor_backend"] = "uni"
            with nullcontext() if spec.spawned else forked_engines():
                self.llm = LLM(
                    str(GOLDEN / spec.checkpoint),
                    additional_config={"dllm": spec.choices},
                    **options,
                )
            undo.callback(self.llm.llm_engine.engine_core.shutdown)
            self.llm.collective_rpc(count_forwards)
            self.undo = undo.pop_all()

    def ask(self, cases: Sequence[Case], **sampling: Any) -> list["RequestOutput"]:
        """Run the cases as one batch; `sampling` overrides their parameters."""
        return self.ask_each([(case, sampling) for case in cases])

    def ask_each(
        self,
        requests: Sequence[Request],
        adapters: Sequence["LoRARequest | None"] | None = None,
    ) -> list["RequestOutput"]:
        """One batch of requests that override parameters of their own."""
        params = [sampling_params(*request) for request in requests]
        prompts = [{"prompt_token_ids": case.prompt} for case, _ in requests]
        with watched(self.llm.llm_engine):
            return self.llm.generate(
                prompts, params, lora_request=adapters, use_tqdm=False
            )

    def ask_preempting(
        self,
        requests: Sequence[Request],
        every: int,
        adapters: Sequence["LoRARequest | None"] | None = None,
    ) -> list["RequestOutput"]:
        """The same, while all that run are preempted after each `every` steps.

        A request that has all its pages from the start is never preempted otherwise.
        An engine of several ranks does not wait for us: its moments are not the same
        in another run.
        """
        core, steps = self.llm.llm_engine, 0
        ids = [f"preempted-{next(self.numbers)}" for _ in requests]
        adapters = adapters or [None] * len(ids)
        for request_id, (case, sampling), adapter in zip(
            ids, requests, adapters, strict=True
        ):
            prompt = {"prompt_token_ids": case.prompt}
            params = sampling_params(case, sampling)
            core.add_request(request_id, prompt, params, lora_request=adapter)
        finished: dict[str, RequestOutput] = {}
        with watched(core):
            while core.has_unfinished_requests():
                finished |= {o.request_id: o for o in core.step() if o.finished}
                steps += 1
                if steps % every == 0:
                    core.reset_prefix_cache(reset_running_requests=True)
        return [finished[request_id] for request_id in ids]

    def ask_streaming(self, requests: Sequence[Request]) -> list[list["RequestOutput"]]:
        """What the reader of each request's stream is told, piece by piece."""
        from vllm.sampling_params import RequestOutputKind

        core, pieces = self.llm.llm_engine, {}
        for case, sampling in requests:
            name = f"streamed-{next(self.numbers)}"
            pieces[name] = []
            sampling = {**sampling, "output_kind": RequestOutputKind.DELTA}
            prompt = {"prompt_token_ids": case.prompt}
            core.add_request(name, prompt, sampling_params(case, sampling))
        with watched(core):
            while core.has_unfinished_requests():
                for output in core.step():
                    pieces[output.request_id].append(output)
        return [*pieces.values()]

    def answers(self, cases: Sequence[Case], **sampling: Any) -> list[list[int]]:
        return [tokens_of(output) for output in self.ask(cases, **sampling)]

    def forwards(self, output: "RequestOutput") -> int:
        """Number of model forwards that the request was part of; of an engine that
        plans ahead those that decided something."""
        if self.spec.plans_ahead:
            return output.outputs[0].spec_decode_metrics.num_draft_tokens
        counts = self.llm.collective_rpc(forward_counts)[0]
        return counts[output.request_id]

    def counter(self, name: str) -> int:
        """A vLLM counter, since the engine's start."""
        metrics = self.llm.get_metrics()
        return sum(m.value for m in metrics if m.name == f"vllm:{name}")

    def forget_prefixes(self) -> None:
        """Empty the prefix cache, which needs every page to be free."""
        assert self.llm.reset_prefix_cache(), "pages are still held by a request"

    def check_idle(self) -> None:
        """Assert that nothing is held for any request: pages, slots, saved blocks."""
        self.forget_prefixes()
        # Workers hear of the end of a request with the next step, an empty one.
        if self.in_process:
            self.llm.llm_engine.step()
        deadline = time.monotonic() + (0 if self.in_process else 30)
        while any(held := self.llm.collective_rpc(held_by_requests)):
            assert time.monotonic() < deadline, (
                f"held (slots, saved blocks, logprobs, rules): {held}"
            )
            time.sleep(0.05)

    def close(self) -> None:
        del self.llm
        self.undo.close()


def sampling_params(case: Case, sampling: dict[str, Any]) -> "SamplingParams":
    """Those of the case, under those of `sampling`."""
    from vllm import SamplingParams

    return SamplingParams(
        **{
            "temperature": 0,
            "max_tokens": case.gen_length,
            "ignore_eos": case.ignore_eos,
            "extra_args": case.fields,
            **sampling,
        }
    )


def tokens_of(output: "RequestOutput") -> list[int]:
    return list(output.outputs[0].token_ids)


# Run inside the workers, by LLM.collective_rpc.


def count_forwards(worker: Any) -> None:
    runner = worker.model_runner
    original = runner.execute_model
    runner.test_forwards = {}

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        for req_id in scheduler_output.num_scheduled_tokens:
            # vLLM appends a random suffix to the id that the client knows.
            known_id = req_id.rsplit("-", 1)[0]
            count = runner.test_forwards.get(known_id, 0)
            runner.test_forwards[known_id] = count + 1
        return original(scheduler_output, *args, **kwargs)

    runner.execute_model = execute_model


def forward_counts(worker: Any) -> dict[str, int]:
    return worker.model_runner.test_forwards


def held_by_requests(worker: Any) -> tuple[int, ...] | None:
    runner, slots = worker.model_runner, worker.model_runner.model_state.slots
    held = (
        runner.req_states.max_num_reqs - len(runner.req_states.free_indices),
        len(slots.suspended.saved),
        len(slots.logprobs.kept),
        len(slots.sampling.rules),
    )
    return held if any(held) else None


class OneAtATime:
    """Holds the running engine or server, and ends it when another one is wanted."""

    def __init__(self) -> None:
        self.current: Engine | Server | None = None
        self.key: tuple[type, EngineSpec] | None = None

    def engine(self, spec: EngineSpec) -> Engine:
        if self.key != (Engine, spec):
            self.close()
            self.current, self.key = Engine(spec), (Engine, spec)
        return self.current

    def server(self, spec: EngineSpec, logs: Path) -> Server:
        """Its output goes to a file in the folder `logs`."""
        if self.key != (Server, spec):
            self.close()
            log = logs / "server.log"
            self.current, self.key = Server(spec, log), (Server, spec)
        return self.current

    def close(self) -> None:
        current, self.current, self.key = self.current, None, None
        if current is not None:
            current.close()
