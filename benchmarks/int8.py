"""`--quantization dllm_int8` against bfloat16 and float32, by the engine's CPU time.

    python benchmarks/int8.py --out docs/benchmarks/int8.json

The random SDAR of engine.py with blocks of 4 and 32, and the random LLaDA of
full_attention.py without a cache and with the dual one: three offline engines of this
process that take turns, eager, one thread, a prompt of 128 and 128 new tokens. Forwards
are the same number for all: one token each for SDAR, and even steps for LLaDA. CPU
seconds: other work on the machine says little in them. Medians.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import checkpoints
from engine import CONCURRENCY, PROMPT, THRESHOLD, TOKENS, conditions
from full_attention import BLOCK, EVEN_STEPS, STEPS
from results import write
from server import random_prompts
from vllm import LLM, SamplingParams

OPTIONS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "float32": {"dtype": "float32"},
    "int8": {"dtype": "bfloat16", "quantization": "dllm_int8"},
}
EVEN = {"dllm_algorithm": "low_confidence", "dllm_block_length": BLOCK}
Work = tuple[int | None, dict[str, Any]]
WORK: dict[str, Work] = {
    "SDAR, block 4": (4, {"dllm_threshold": THRESHOLD}),
    "SDAR, block 32": (32, {"dllm_threshold": THRESHOLD}),
    "LLaDA, none": (None, {**EVEN, "dllm_cache": "none", "dllm_steps": STEPS}),
    "LLaDA, dual": (None, {**EVEN, "dllm_cache": "dual", "dllm_steps": EVEN_STEPS}),
}
"""Block of the checkpoint, if it is SDAR, and fields of a request."""


def make(folder: Path, block: int | None) -> Path:
    if block is None:
        return checkpoints.make_llada(folder)
    return checkpoints.make(folder, block)


def engine_of(checkpoint: Path, options: dict[str, Any]) -> LLM:
    """An offline engine in this process."""
    return LLM(
        str(checkpoint),
        max_model_len=512,
        max_num_seqs=max(CONCURRENCY),
        max_num_batched_tokens=max(CONCURRENCY) * (PROMPT + TOKENS),
        num_gpu_blocks_override=256,
        enforce_eager=True,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
        **options,
    )


def run(llm: LLM, asked: dict[str, Any], requests: int, seed: int) -> tuple[float, int]:
    """CPU seconds and steps of answers to some requests at once."""
    params = SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args=asked
    )
    engine = llm.llm_engine
    for number, ids in enumerate(random_prompts(seed, requests, PROMPT)):
        name = f"{requests}-{seed}-{number}"
        engine.add_request(name, {"prompt_token_ids": ids}, params)
    start, steps = time.process_time(), 0
    while engine.has_unfinished_requests():
        engine.step()
        steps += 1
    return time.process_time() - start, steps


def measure(
    folder: Path, work: Work, concurrency: tuple[int, ...], repeats: int
) -> dict[str, Any]:
    block, asked = work
    checkpoint = make(folder, block)
    llms = {name: engine_of(checkpoint, options) for name, options in OPTIONS.items()}
    for llm in llms.values():  # the first requests of an engine are slower
        run(llm, asked, 1, 0)
    runs: dict[str, list[tuple[float, int]]] = {}
    for seed in range(1, repeats + 1):
        for c in concurrency:
            for name, llm in llms.items():
                found = run(llm, asked, c, seed)
                runs.setdefault(f"{name}, c={c}", []).append(found)
                print(f"  {name}, c={c}: {found}", flush=True)
    return {
        name: {
            "seconds": median(seconds for seconds, _ in each),
            "ms_per_step": 1000 * median(seconds / steps for seconds, steps in each),
        }
        for name, each in runs.items()
    }


def show(results: dict[str, Any], concurrency: tuple[int, ...]) -> None:
    """Print the table of docs/benchmarks.md."""
    ratios = "int8 / bfloat16 | int8 / c=1"
    print(f"| work | at once | bfloat16 | float32 | int8 | {ratios} |")
    print("|---|---|---|---|---|---|---|")
    for name in WORK:
        for c in concurrency if name in results else ():
            rows = results[name]
            speed = [c * TOKENS / rows[f"{each}, c={c}"]["seconds"] for each in OPTIONS]
            alone = TOKENS / rows["int8, c=1"]["seconds"]
            cells = [f"{value:.1f}" for value in speed]
            cells += [f"{speed[2] / speed[0]:.2f}", f"{speed[2] / alone:.2f}"]
            print(f"| {name} | {c} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = conditions(args.repeats)
    concurrency = tuple(args.concurrency)
    for name in args.only:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            work = WORK[name]
            results[name] = measure(Path(folder), work, concurrency, args.repeats)
        write(results, args.out)
    show(results, concurrency)


if __name__ == "__main__":
    main()
