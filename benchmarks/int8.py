"""`--quantization dllm_int8` against bfloat16 and float32, one run.

    python benchmarks/int8.py --out docs/benchmarks/int8.json

The random SDAR of engine.py with blocks of 4 and 32, and the random LLaDA of
full_attention.py without a cache and with the dual one, each served three times, side
by side; runs alternate, medians. One compute thread each, and only one server has
requests at a time; nothing else may run meanwhile. Forwards are the same number for
all: one token each for SDAR, and even steps for LLaDA.
"""

import argparse
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import checkpoints
from engine import THRESHOLD, alternate, conditions, server_measures
from full_attention import BLOCK, EVEN_STEPS, STEPS
from results import write
from server import serve

FLAGS = {
    "bfloat16": ("--dtype", "bfloat16"),
    "float32": ("--dtype", "float32"),
    "int8": ("--dtype", "bfloat16", "--quantization", "dllm_int8"),
}
CONCURRENCY = (1, 8)
EVEN = {"dllm_algorithm": "low_confidence", "dllm_block_length": BLOCK}
WORK: dict[str, tuple[int | None, dict[str, Any]]] = {
    "SDAR, block 4": (4, {"dllm_threshold": THRESHOLD}),
    "SDAR, block 32": (32, {"dllm_threshold": THRESHOLD}),
    "LLaDA, none": (None, {**EVEN, "dllm_cache": "none", "dllm_steps": STEPS}),
    "LLaDA, dual": (None, {**EVEN, "dllm_cache": "dual", "dllm_steps": EVEN_STEPS}),
}
"""Block of the checkpoint, if it is SDAR, and fields of a request."""


def measure(
    work: Path, block: int | None, asked: dict[str, Any], repeats: int
) -> dict[str, Any]:
    make = checkpoints.make_llada if block is None else checkpoints.make
    checkpoint = make(work / "checkpoint", *(() if block is None else (block,)))
    with contextlib.ExitStack() as servers:
        measures = {}
        for name, flags in FLAGS.items():
            log = work / f"{name}.log"
            server = servers.enter_context(serve(checkpoint, *flags, log=log))
            runs = server_measures(server, CONCURRENCY, vllm_xargs=asked)
            measures |= {f"{name}, {run}": call for run, call in runs.items()}
            runs["c=1"](0)  # the first requests of a server are slower
        return alternate(repeats, measures)


def show(results: dict[str, Any]) -> None:
    """Print the table of docs/benchmarks.md."""
    print("| work | at once | bfloat16 | float32 | int8 | int8 / bfloat16 |")
    print("|---|---|---|---|---|---|")
    for name in WORK:
        for run in CONCURRENCY if name in results else ():
            speed = [
                results[name][f"{dtype}, c={run}"]["tokens_per_second"]
                for dtype in FLAGS
            ]
            cells = [f"{value:.1f}" for value in speed]
            cells.append(f"{speed[2] / speed[0]:.2f}")
            print(f"| {name} | {run} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = conditions(args.repeats)
    for name in args.only:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(Path(folder), *WORK[name], args.repeats)
        write(results, args.out)
    show(results)


if __name__ == "__main__":
    main()
