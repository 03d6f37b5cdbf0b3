"""Ours against llama.cpp's diffusion program, on the same random LLaDA.

    pip install gguf
    python benchmarks/llama_cpp.py --binary llama.cpp/build/bin/llama-diffusion-cli \\
        --out docs/benchmarks/llama_cpp.json

128 tokens after a prompt of 128, in 64 steps, blocks of 32, one thread, greedy,
without a cache, as llama.cpp has it, and with our dual one. CPU seconds of the process,
of runs in turn, medians: other work on the machine says little in them. llama.cpp's are
of 64 steps less those of 8, over 56: what a start takes is not of a step. Ours are of
offline engines, eager, in bfloat16, float32 and int8.
"""

import argparse
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import checkpoints
import gguf_file
import int8
from engine import PROMPT, TOKENS, conditions
from full_attention import BLOCK, STEPS
from results import write

CACHES = ("none", "dual")
FEW = (PROMPT + TOKENS) // BLOCK
"""Steps that are left out: fewer the program does not take."""


def theirs(binary: Path, model: Path, seed: int) -> tuple[float, int]:
    """CPU seconds and steps of an answer, as if the program took no time to start."""
    few, all_steps = (program(binary, model, steps) for steps in (FEW, STEPS))
    return (all_steps - few) * STEPS / (STEPS - FEW), STEPS


def program(binary: Path, model: Path, steps: int) -> float:
    """CPU seconds of a run."""
    letters = [chr(ord("a") + number % 25) for number in range(PROMPT)]
    length = str(PROMPT + TOKENS)
    command = [
        *(binary, "-m", model, "-p", "".join(letters), "-t", "1", "-tb", "1"),
        *("-c", length, "-b", length, "-ub", length, "--temp", "0"),
        *("--diffusion-block-length", BLOCK, "--diffusion-steps", steps),
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print the table of docs/benchmarks.md."""
    print("| run | CPU ms/step | tokens/CPU s |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['ms_per_step']:.1f} | {row['tokens_per_second']:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    measures: dict[str, Callable[[int], tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoints.make_llada(Path(folder) / "llada")
        for kind in gguf_file.TYPES:
            model = Path(folder) / f"{kind}.gguf"
            gguf_file.write(checkpoint, model, kind)
            measures[f"llama.cpp {kind}"] = partial(theirs, args.binary, model)
        for name, options in int8.OPTIONS.items():
            llm = int8.engine_of(checkpoint, options)
            for cache in CACHES:
                _, asked = int8.WORK[f"LLaDA, {cache}"]
                call = partial(int8.run, llm, asked, 1)
                call(0)  # the first requests of an engine are slower
                measures[f"{cache}, {name}"] = call
        runs: dict[str, list[tuple[float, int]]] = {name: [] for name in measures}
        for seed in range(1, args.repeats + 1):
            for name, call in measures.items():
                runs[name].append(call(seed))
                print(f"  {name}: {runs[name][-1]}", flush=True)
    rows = {
        name: {
            "ms_per_step": 1000 * median(seconds / steps for seconds, steps in each),
            "tokens_per_second": TOKENS / median(seconds for seconds, _ in each),
        }
        for name, each in runs.items()
    }
    show(rows)
    write({**conditions(args.repeats), "block": BLOCK, "runs": rows}, args.out)


if __name__ == "__main__":
    main()
