"""The engines of the tests: what each is started with, and the one that is alive.

A start takes 10 to 20 seconds, so tests name an engine (`@uses("sdar16")`) and share
it; conftest.py orders them so that each engine is started once.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from tests.golden_cases import GOLDEN, Case

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest


MODELS = Path(__file__).parents[1] / "models"
CORE = int(os.environ.get("DLLM_TEST_CORE", "0"))
"""The core that an engine of one rank gets; two test runs side by side take two."""
Request = tuple[Case, dict[str, Any]]
"""A case, and sampling parameters that override its own."""


@dataclass(frozen=True)
class EngineSpec:
    checkpoint: str
    """A folder of tests/golden, or any other by its full path."""
    block: int | None = None
    """The server's own diffusion block size; None if requests choose theirs."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of `vllm.LLM`, over `COMMON`; of `vllm serve`, as flags."""


COMMON = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 32,
    "enforce_eager": True,
    "disable_log_stats": False,
    "max_logprobs": 256,
}
TIGHT_MODEL_LEN = 203
"""Ends inside a block of 16."""
TIGHT_BUDGET = 160
"""Tokens in a forward of `llada-tight`: less than its longest request."""
SERVER_BUDGET = 512
"""The same of the servers `llada` and `dream`."""
LORA = {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 8, "max_lora_rank": 8}
"""Fewer adapters in a batch than tests/test_adapters.py has."""

OFFLINE = {
    "sdar4": EngineSpec("sdar-pub0", 4),
    "sdar16": EngineSpec("sdar-pub1", 16),
    "llada8": EngineSpec("llada20-pub0", 8),
    "llada32": EngineSpec("llada20-pub0", 32),
    "editing8": EngineSpec("llada21-pub0", 8),
    "editing32": EngineSpec("llada21-pub0", 32),
    "sdar16-tight": EngineSpec(
        "sdar-pub1",
        16,
        {"max_model_len": TIGHT_MODEL_LEN, "max_num_batched_tokens": 64},
    ),
    "llada32-small-steps": EngineSpec(
        "llada20-pub0", 32, {"max_num_batched_tokens": 64}
    ),
    # A request of 110 tokens takes 4 pages, and one page is never given out.
    "sdar16-few-pages": EngineSpec(
        "sdar-pub1", 16, {"max_model_len": 256, "num_gpu_blocks_override": 14}
    ),
    "sdar16-tp2": EngineSpec("sdar-pub1", 16, {"tensor_parallel_size": 2}),
    "llada32-tp2": EngineSpec("llada20-pub0", 32, {"tensor_parallel_size": 2}),
    # Full attention: requests choose their block length.
    "llada": EngineSpec("llada-pub0"),
    "dream": EngineSpec("dream-pub0"),
    # JSON without spaces, of which there may be any number.
    "tiny-llada": EngineSpec(
        str(MODELS / "tiny-llada"),
        options={
            "structured_outputs_config": {
                "backend": "xgrammar",
                "disable_any_whitespace": True,
            }
        },
    ),
    # Neither the budget nor the pages are enough for all requests that have a slot.
    "llada-tight": EngineSpec(
        "llada-pub0",
        options={
            "max_model_len": TIGHT_MODEL_LEN,
            "max_num_batched_tokens": TIGHT_BUDGET,
            "num_gpu_blocks_override": 14,
        },
    ),
    "sdar16-lora": EngineSpec("sdar-pub1", 16, LORA),
    "llada-lora": EngineSpec("llada-pub0", options=LORA),
    "dream-lora": EngineSpec("dream-pub0", options=LORA),
    "llada-lora-tp2": EngineSpec(
        "llada-pub0", options={**LORA, "tensor_parallel_size": 2}
    ),
    "llada-tp2": EngineSpec("llada-pub0", options={"tensor_parallel_size": 2}),
    "dream-tp2": EngineSpec("dream-pub0", options={"tensor_parallel_size": 2}),
}
SERVERS = {
    "sdar4": EngineSpec("sdar-pub0", 4),
    "sdar16": EngineSpec("sdar-pub1", 16),
    "llada8": EngineSpec("llada20-pub0", 8),
    "llada32": EngineSpec("llada20-pub0", 32),
    "editing32": EngineSpec("llada21-pub0", 32),
    "llada": EngineSpec(
        "llada-pub0", options={"max_num_batched_tokens": SERVER_BUDGET}
    ),
    "dream": EngineSpec(
        "dream-pub0", options={"max_num_batched_tokens": SERVER_BUDGET}
    ),
}


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
        ranks = spec.options.get("tensor_parallel_size", 1)
        cores = "0|1" if ranks > 1 else str(CORE)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
        self.llm = LLM(
            str(GOLDEN / spec.checkpoint),
            additional_config={
                "dllm": {"block_size": spec.block} if spec.block else {}
            },
            **COMMON | spec.options,
        )
        self.llm.collective_rpc(count_forwards)
        self.numbers = count()

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
        return self.llm.generate(prompts, params, lora_request=adapters, use_tqdm=False)

    def ask_preempting(
        self,
        requests: Sequence[Request],
        every: int,
        adapters: Sequence["LoRARequest | None"] | None = None,
    ) -> list["RequestOutput"]:
        """The same, while all that run are preempted after each `every` steps.

        A request that has all its pages from the start is never preempted otherwise.
        The engine does not wait for us, so the moments differ from run to run.
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
        while core.has_unfinished_requests():
            finished |= {o.request_id: o for o in core.step() if o.finished}
            steps += 1
            if steps % every == 0:
                core.reset_prefix_cache(reset_running_requests=True)
        return [finished[request_id] for request_id in ids]

    def answers(self, cases: Sequence[Case], **sampling: Any) -> list[list[int]]:
        return [tokens_of(output) for output in self.ask(cases, **sampling)]

    def forwards(self, output: "RequestOutput") -> int:
        """Number of model forwards that the request was part of."""
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
        deadline = time.monotonic() + 30
        # Workers hear of the end of a request with the next step, an empty one.
        while any(held := self.llm.collective_rpc(held_by_requests)):
            assert time.monotonic() < deadline, (
                f"held (slots, saved blocks, logprobs, rules): {held}"
            )
            time.sleep(0.05)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


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


class Server:
    """A `vllm serve` process on a free port of the loopback interface."""

    MODEL = "golden"
    START_SECONDS = 240

    def __init__(self, spec: EngineSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [Path(sys.executable).with_name("vllm"), "serve"]
        command += [GOLDEN / spec.checkpoint]
        command += ["--dllm-block-size", spec.block] if spec.block else []
        command += ["--host", "127.0.0.1", "--port", port]
        command += ["--served-model-name", self.MODEL, "--dtype", "float32"]
        command += ["--max-model-len", 1024, "--max-num-seqs", 16, "--enforce-eager"]
        for name, value in spec.options.items():
            values = value if isinstance(value, list) else [value]
            command += [f"--{name.replace('_', '-')}"]
            command += [] if value is True else values
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": str(CORE)},
                start_new_session=True,
            )
        try:
            self.wait_until_healthy()
        except BaseException:
            self.close()
            raise

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self.START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"vllm serve ended:\n{self.log_tail()}")
            try:
                with urlopen(f"{self.url}/health"):
                    return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"vllm serve does not answer:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-60:])

    def metric(self, name: str) -> float:
        """A vLLM gauge or counter, summed over its labels."""
        with urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f"vllm:{name}{{")
        ]
        assert values, f"/metrics has no vllm:{name}"
        return sum(values)

    def held(self) -> dict[str, float]:
        """What it holds for requests, with half a minute to let go of it."""
        gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        for _ in range(60):
            held = {name: value for name in gauges if (value := self.metric(name))}
            if not held:
                break
            time.sleep(0.5)
        return held

    def close(self) -> None:
        """End the server and the processes it started."""
        for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


class OneAtATime:
    """Holds the running engine or server, and ends it when another one is wanted."""

    def __init__(self) -> None:
        self.current: Engine | Server | None = None
        self.key: tuple[type, str] | None = None

    def engine(self, name: str) -> Engine:
        if self.key != (Engine, name):
            self.close()
            self.current, self.key = Engine(OFFLINE[name]), (Engine, name)
        return self.current

    def server(self, name: str, logs: Path) -> Server:
        if self.key != (Server, name):
            self.close()
            log = logs / f"{name}.log"
            self.current, self.key = Server(SERVERS[name], log), (Server, name)
        return self.current

    def close(self) -> None:
        current, self.current, self.key = self.current, None, None
        if current is not None:
            current.close()
