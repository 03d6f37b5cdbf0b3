"""What it gains to plan a step before the last one is back (`--async-scheduling`).

    python benchmarks/planned_ahead.py --out docs/benchmarks/planned_ahead.json

The models of host_step.py, whose forward costs next to nothing. Each in two engines,
one of which plans ahead, with the engine and its worker in processes of their own, as a
server has them; they take turns. Microseconds by the wall clock for each token of a
request, of the cheapest of the repeats, and forwards of the worker for each token:
those that make a block final and decide nothing are more where steps are planned ahead.
No token is ever sure enough, so a block of 4 takes four steps. Needs a core for the
engine and one for the worker.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import checkpoints
import host_step
from engine import conditions
from results import write
from server import random_prompts
from vllm import LLM, SamplingParams

# Importing host_step has asked for one process.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # for functions of ours

BLOCKS = (4, 32)
CONCURRENCY = (1, 8, 32)
TOKENS = 64


def count_forwards(worker: Any) -> None:
    runner = worker.model_runner
    original, runner.counted = runner.execute_model, 0

    def execute_model(step: Any, *args: Any, **kwargs: Any) -> Any:
        runner.counted += bool(step.num_scheduled_tokens)
        return original(step, *args, **kwargs)

    runner.execute_model = execute_model


def counted(worker: Any) -> int:
    return worker.model_runner.counted


class Engine:
    def __init__(self, checkpoint: str, ahead: bool) -> None:
        self.llm = LLM(
            checkpoint,
            max_model_len=1024,
            max_num_seqs=max(CONCURRENCY),
            max_num_batched_tokens=max(CONCURRENCY) * host_step.PROMPT,
            enforce_eager=True,
            enable_prefix_caching=False,
            async_scheduling=ahead,
        )
        self.llm.collective_rpc(count_forwards)
        self.number = 0

    def burst(self, concurrency: int) -> dict[str, float]:
        params = SamplingParams(
            temperature=0,
            max_tokens=TOKENS,
            ignore_eos=True,
            extra_args={"dllm_threshold": 1.0},
        )
        vocab = host_step.SHAPE["vocab_size"]
        prompts = random_prompts(self.number, concurrency, host_step.PROMPT, vocab)
        self.number += 1
        before = self.llm.collective_rpc(counted)[0]
        start = time.perf_counter()
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        self.llm.generate(inputs, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        forwards = self.llm.collective_rpc(counted)[0] - before
        return {"wall": 1e6 * seconds / TOKENS, "forwards": forwards / TOKENS}


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print the table of docs/benchmarks.md."""
    print("| at once | block | one by one | ahead | gain | forwards a token |")
    print("|---|---|---|---|---|---|")
    for concurrency in CONCURRENCY:
        for block in BLOCKS:
            key = f"block {block}, c={concurrency}"
            off, on = rows[f"{key}, one by one"], rows[f"{key}, ahead"]
            gain = 1 - on["wall"] / off["wall"]
            print(
                f"| {concurrency} | {block} | {off['wall']:.0f} | {on['wall']:.0f} "
                f"| {gain:.0%} | {off['forwards']:.2f}, {on['forwards']:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, Engine] = {}
        for block in BLOCKS:
            place = Path(folder) / str(block)
            checkpoint = str(checkpoints.make(place, block, host_step.SHAPE))
            for name, ahead in (("one by one", False), ("ahead", True)):
                engines[f"block {block}, {name}"] = Engine(checkpoint, ahead)
        for repeat in range(args.repeats + 1):
            for concurrency in CONCURRENCY:
                for name, engine in engines.items():
                    block, kind = name.split(", ")
                    key = f"{block}, c={concurrency}, {kind}"
                    row = engine.burst(concurrency)
                    if repeat:  # the first: a warm-up
                        best = rows.get(key, row)
                        rows[key] = min(row, best, key=lambda r: r["wall"])
    show(rows)
    write({**conditions(args.repeats), "tokens": TOKENS, "runs": rows}, args.out)


if __name__ == "__main__":
    main()
