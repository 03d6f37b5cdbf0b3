"""Our server against a plain KV-cached loop and against vLLM's own Qwen3, one run.

    python benchmarks/engine.py --out docs/benchmarks/engine.json

One compute thread on each side; nothing else may run meanwhile. Alternating runs,
medians. Prompts and weights are random, so the threshold never fires and each forward
decodes one token: the worst case. The table says what a forward costs.
"""

import argparse
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import checkpoints
import torch
from plain_loop import PlainLoop
from server import Run, Server, serve

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


def measure_loop(loop: PlainLoop, seed: int) -> Run:
    rng = random.Random(seed)
    prompt = [rng.randrange(5, 30000) for _ in range(PROMPT)]
    start = time.perf_counter()
    result = loop.generate(prompt, TOKENS, THRESHOLD, loop.block)
    seconds = time.perf_counter() - start
    forwards = result.forwards
    return Run(len(result.tokens), seconds, forwards, seconds, seconds, forwards)


def alternate(
    repeats: int, measures: dict[str, Callable[[int], Run]]
) -> dict[str, dict[str, float]]:
    """Warm up, then run all measures in turn, `repeats` times."""
    runs: dict[str, list[Run]] = {name: [] for name in measures}
    for name in measures.keys() & {"c=1", "plain loop"}:
        measures[name](0)
    for seed in range(1, repeats + 1):
        for name, measure in measures.items():
            run = measure(seed)
            runs[name].append(run)
            print(f"  {name}: {run.tokens_per_second:.1f} tok/s", flush=True)
    return {name: median_of(values) for name, values in runs.items()}


def server_measures(server: Server, **extra: Any) -> dict[str, Callable[[int], Run]]:
    return {
        f"c={c}": lambda seed, c=c: server.run(c, PROMPT, TOKENS, seed, **extra)
        for c in CONCURRENCY
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
        "prompt": PROMPT,
        "tokens": TOKENS,
        "threshold": THRESHOLD,
        "repeats": args.repeats,
    }
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
                measures["plain loop"] = lambda seed, loop=loop: measure_loop(
                    loop, seed
                )
                results[f"block {block}"] = alternate(args.repeats, measures)
        print("qwen3", flush=True)
        checkpoint = checkpoints.make(work / "qwen3", None)
        with serve(checkpoint, log=work / "qwen3.log") as server:
            results["qwen3"] = alternate(args.repeats, server_measures(server))
    show(results)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1))


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
            ratio = rows["c=1"]["tokens_per_second"]
            print(
                f"{model}: {ratio / rows['plain loop']['tokens_per_second']:.2f} x the "
                f"loop; c=8 is {rows['c=8']['tokens_per_second'] / ratio:.2f} x c=1"
            )


if __name__ == "__main__":
    main()
