"""Our server against a plain KV-cached loop and against vLLM's own Qwen3, one run.

    python benchmarks/engine.py --out docs/benchmarks/engine.json

One compute thread on each side; nothing else may run meanwhile. Alternating runs,
medians. Prompts and weights are random, so the threshold never fires and each forward
decodes one token: the worst case. The table says what a forward costs.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import checkpoints
import torch
from plain_loop import PlainLoop, Result
from results import write
from server import Run, Server, random_prompts, serve

PROMPT = 128
TOKENS = 128
CONCURRENCY = (1, 4, 8, 16)
THRESHOLD = 0.9


def median_of(runs: list[Run]) -> dict[str, float]:
    """The run with the median time, in the units of the table."""
    run = sorted(runs, key=lambda r: r.seconds)[len(runs) // 2]
    return {
        "tokens_per_second": run.tokens_per_second,
        "tokens_per_forward": run.tokens / run.forwards if run.forwards else 1.0,
        "forwards": run.forwards or run.tokens,
        "steps": run.steps,
        "ms_per_step": 1000 * run.seconds / run.steps,
        "outside_model_in_worker": 1 - run.model_seconds / run.worker_seconds,
        "outside_model_in_all": 1 - run.model_seconds / run.seconds,
    }


def measure_loop(
    generate: Callable[[list[int]], Result], seed: int, requests: int = 1
) -> Run:
    """Requests one after another, the first of those that the server gets."""
    prompts = random_prompts(seed, requests, PROMPT)
    start = time.perf_counter()
    results = [generate(prompt) for prompt in prompts]
    seconds = time.perf_counter() - start
    tokens = sum(len(result.tokens) for result in results)
    forwards = sum(result.forwards for result in results)
    return Run(tokens, seconds, forwards, seconds, seconds, forwards)


def alternate(
    repeats: int, measures: dict[str, Callable[[int], Run]]
) -> dict[str, dict[str, float]]:
    """Warm up, then run all measures in turn, `repeats` times."""
    runs: dict[str, list[Run]] = {name: [] for name in measures}
    for name in measures.keys() & {"c=1", "plain loop", "lean loop"}:
        measures[name](0)
    for seed in range(1, repeats + 1):
        for name, measure in measures.items():
            run = measure(seed)
            runs[name].append(run)
            print(f"  {name}: {run.tokens_per_second:.1f} tok/s", flush=True)
    return {name: median_of(values) for name, values in runs.items()}


def server_measures(
    server: Server, concurrency: Iterable[int] = CONCURRENCY, **extra: Any
) -> dict[str, Callable[[int], Run]]:
    return {
        f"c={c}": lambda seed, c=c: server.run(c, PROMPT, TOKENS, seed, **extra)
        for c in concurrency
    }


def conditions(repeats: int) -> dict[str, Any]:
    """What a file of results says about the machine and the runs."""
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
        "prompt": PROMPT,
        "tokens": TOKENS,
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {**conditions(args.repeats), "threshold": THRESHOLD}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for block in args.blocks:
            print(f"block {block}", flush=True)
            checkpoint = checkpoints.make(work / f"sdar-{block}", block)
            loop = PlainLoop(checkpoint, block, checkpoints.SHAPE["vocab_size"] - 1)
            with serve(checkpoint, log=work / f"sdar-{block}.log") as server:
                measures = server_measures(
                    server, vllm_xargs={"dllm_threshold": THRESHOLD}
                )
                generate = partial(
                    loop.generate, max_tokens=TOKENS, threshold=THRESHOLD, steps=block
                )
                measures["plain loop"] = partial(measure_loop, generate)
                results[f"block {block}"] = alternate(args.repeats, measures)
            write(results, args.out)
        print("qwen3", flush=True)
        checkpoint = checkpoints.make(work / "qwen3", None)
        with serve(checkpoint, log=work / "qwen3.log") as server:
            results["qwen3"] = alternate(args.repeats, server_measures(server))
    show(results)
    write(results, args.out)


def show(results: dict[str, Any]) -> None:
    """Print the table of docs/benchmarks.md."""
    columns = ("tok/s", "tok/forward", "forwards", "ms/step")
    columns += ("outside the model: of the worker", "of everything")
    print("| model | run | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for model, rows in results.items():
        if not isinstance(rows, dict) or "c=1" not in rows:
            continue
        for name, row in rows.items():
            cells = (
                f"{row['tokens_per_second']:.1f}",
                f"{row['tokens_per_forward']:.2f}",
                f"{row['forwards']:.0f}",
                f"{row['ms_per_step']:.2f}",
                f"{100 * row['outside_model_in_worker']:.0f} %",
                f"{100 * row['outside_model_in_all']:.0f} %",
            )
            print(f"| {model} | {name} | " + " | ".join(cells) + " |")
        if "plain loop" in rows:
            print(f"{model}: {ratio(rows, 'c=1', 'plain loop'):.2f} x the loop")
        if "c=8" in rows:
            print(f"{model}: c=8 is {ratio(rows, 'c=8', 'c=1'):.2f} x c=1")


def ratio(rows: dict[str, dict[str, float]], run: str, base: str) -> float:
    return rows[run]["tokens_per_second"] / rows[base]["tokens_per_second"]


if __name__ == "__main__":
    main()
