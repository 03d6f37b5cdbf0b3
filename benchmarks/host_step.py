"""What a step costs besides its model: ours against vLLM's own autoregressive one.

    python benchmarks/host_step.py --out docs/benchmarks/host_step.json

Models of 2 layers and 64 dimensions, SDAR with blocks of 4 and of 32 and a Qwen3 of the
same shape, in three offline engines of this process that take turns; one thread.
Microseconds of CPU time of the thread, of the cheapest of the repeats, and by the wall
clock for comparison: other work on the machine adds to both, and more to the latter.
To read the clock costs too, and ours has more parts: what is outside of the model is
from bursts in which nothing but the model is timed, what a part takes from others.
No token is ever sure enough, so a block of 4 takes four steps.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import checkpoints
from engine import conditions
from results import write
from server import random_prompts
from vllm import LLM, SamplingParams
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.v1.worker.gpu.async_utils import AsyncOutput

SHAPE = {
    **checkpoints.SHAPE,
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
ENGINES: dict[str, int | None] = {"AR": None, "block 4": 4, "block 32": 32}
"""Block of the checkpoint, if it is SDAR."""
CONCURRENCY = (1, 8, 32, 128)
PROMPT = 64
STEPS = 64
"""Of a burst; all of its requests go on."""
MODEL, STEP = "model", "else"
TOTALS = ("outside", MODEL, "step", "wall")
PARTS = {
    "scheduler": {"schedule": "schedule", "update_from_output": "update"},
    "runner": {
        "update_requests": "prepare",
        "_update_states": "prepare",
        "gather_batch_req_state": "prepare",
        "prepare_inputs": "prepare",
        "_prepare_inputs": "prepare",
        "prepare_attn": "prepare",
        "_build_attention_metadata": "attention rows",
        "_sample": "candidates",
        "_bookkeeping_sync": "emit",
        "postprocess_sampled": "emit",
    },
    "model_state": {"prepare_inputs": "prepare", "prepare_attn": "attention rows"},
    "sampler": {"gather": "gather", "_ask_rules": "rule", "apply": "emit"},
    "sampling": {"propose": "candidates"},
    "model": {"forward": MODEL, "compute_logits": MODEL},
    "processor": {"process_outputs": "detokenise"},
}
"""By the object that has it: a method, and which part of a step it is."""
PARTS_OF_A_STEP = (
    *("schedule", "prepare", "attention rows", MODEL, "gather", "candidates", "rule"),
    *("emit", "update", "serialise", "detokenise"),
)


class Clock:
    """CPU seconds of a thread, by part; what is inside another part is not of both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inner: list[float] = []
        self.tells_parts = True
        """Whether the parts outside of the model are told apart."""

    def time(self, owner: Any, method: str, part: str) -> None:
        """Count the calls of a method."""
        setattr(owner, method, self.timed(getattr(owner, method), part))

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.tells_parts and part not in (MODEL, STEP):
                return function(*args, **kwargs)
            self.inner.append(0.0)
            start = time.thread_time()
            result = function(*args, **kwargs)
            spent = time.thread_time() - start
            self.seconds[part] += spent - self.inner.pop()
            if self.inner:
                self.inner[-1] += spent
            return result

        return call


class Engine:
    def __init__(self, folder: Path, block: int | None, clock: Clock) -> None:
        checkpoint = checkpoints.make(folder, block, SHAPE)
        llm = LLM(
            str(checkpoint),
            max_model_len=1024,
            max_num_seqs=max(CONCURRENCY),
            max_num_batched_tokens=max(CONCURRENCY) * PROMPT,
            enforce_eager=True,
            enable_prefix_caching=False,
            distributed_executor_backend="uni",
        )
        self.engine, self.clock, self.number = llm.llm_engine, clock, 0
        self.step = clock.timed(self.engine.step, STEP)
        self._time_parts()

    def _time_parts(self) -> None:
        core = self.engine.engine_core
        worker = core.engine_core.model_executor.driver_worker
        runner = getattr(worker, "worker", worker).model_runner
        sampler = runner.sampler
        encoder, decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
        get_output = core.get_output

        def carried(outputs: EngineCoreOutputs) -> EngineCoreOutputs:
            """As between the processes of a server."""
            return decoder.decode(encoder.encode(outputs))

        carry = self.clock.timed(carried, "serialise")
        core.get_output = lambda: carry(get_output())
        owners = {
            "scheduler": core.engine_core.scheduler,
            "runner": runner,
            "model_state": getattr(runner, "model_state", None),
            "sampler": sampler,
            "sampling": getattr(sampler, "sampling", None),
            "model": runner.model,
            "processor": self.engine.output_processor,
        }
        for name, methods in PARTS.items():
            for method, part in methods.items():
                if hasattr(owners[name], method):
                    self.clock.time(owners[name], method, part)

    def burst(self, concurrency: int, tells_parts: bool) -> dict[str, float]:
        """Microseconds of a step by part, of requests that all decode; with or without
        parts outside of the model."""
        self.clock.tells_parts = tells_parts
        params = SamplingParams(
            temperature=0,
            max_tokens=2 * STEPS,
            ignore_eos=True,
            extra_args={"dllm_threshold": 1.0},
        )
        names = [f"{self.number}-{index}" for index in range(concurrency)]
        prompts = random_prompts(self.number, concurrency, PROMPT, SHAPE["vocab_size"])
        self.number += 1
        for name, ids in zip(names, prompts, strict=True):
            self.engine.add_request(name, {"prompt_token_ids": ids}, params)
        for _ in range(4):
            self.step()
        self.clock.seconds.clear()
        start = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        wall = time.perf_counter() - start
        spent = dict(self.clock.seconds)
        self.engine.abort_request(names)
        self.engine.step()
        row = {part: 1e6 * seconds / STEPS for part, seconds in spent.items()}
        step = sum(row.values())
        outside, wall = step - row[MODEL], 1e6 * wall / STEPS
        return {**row, "outside": outside, "step": step, "wall": wall}


def show(rows: dict[str, dict[str, float]], concurrency: tuple[int, ...]) -> None:
    """Print the tables of docs/benchmarks.md."""
    runs = [(number, name) for number in concurrency for name in ENGINES]
    ratios = ("outside", "step")
    _head(*TOTALS, *(f"{column}, times AR" for column in ratios))
    for number, name in runs:
        row, base = rows[f"{name}, c={number}"], rows[f"AR, c={number}"]
        cells = [f"{row[column]:.0f}" for column in TOTALS]
        cells += [f"{row[column] / base[column]:.2f}" for column in ratios]
        print(f"| {number} | {name} | " + " | ".join(cells) + " |")
    print()
    parts = [*(part for part in PARTS_OF_A_STEP if part != MODEL), "else"]
    _head(*parts)
    for number, name in runs:
        row = rows[f"{name}, c={number}"]
        cells = [f"{row[part]:.0f}" if part in row else "" for part in parts]
        print(f"| {number} | {name} | " + " | ".join(cells) + " |")


def _head(*columns: str) -> None:
    print("| at once | engine | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=CONCURRENCY, choices=CONCURRENCY
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    clock = Clock()
    clock.time(AsyncOutput, "get_output", "emit")
    totals: dict[str, dict[str, float]] = {}
    parts: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engines = {
            name: Engine(Path(folder) / name, block, clock)
            for name, block in ENGINES.items()
        }
        for repeat in range(args.repeats + 1):
            for concurrency in args.concurrency:
                for name, engine in engines.items():
                    for found, tells_parts in ((parts, True), (totals, False)):
                        row = engine.burst(concurrency, tells_parts)
                        key = f"{name}, c={concurrency}"
                        if repeat:  # the first: a warm-up
                            best = found.get(key, row)
                            found[key] = min(row, best, key=lambda r: r["outside"])
    rows = {
        key: row | {column: totals[key][column] for column in TOTALS}
        for key, row in parts.items()
    }
    show(rows, tuple(args.concurrency))
    write({**conditions(args.repeats), "steps": STEPS, "runs": rows}, args.out)


if __name__ == "__main__":
    main()
