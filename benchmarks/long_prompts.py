"""Prompts of thousands of tokens: ours against vLLM's own autoregressive model.

    python benchmarks/long_prompts.py --out docs/benchmarks/long_prompts.json

The random SDAR of 100 million parameters with blocks of 4, whose threshold never fires,
and a Qwen3 of the same size, in bfloat16; two offline engines of this process that take
turns, eager, one thread. One request at a time. Tokens of the prompt a second of CPU
time until the first token, CPU milliseconds of each step after, and what the process
grows by at its peak, after a first request has touched the pages of the cache. Medians.
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
from engine import conditions
from loading import memory
from results import write
from server import random_prompts
from vllm import LLM, SamplingParams

LENGTHS = (128, 4096, 16384)
STEPS = 32
SHAPE = {**checkpoints.SHAPE, "max_position_embeddings": 32768}
ENGINES = {"AR": None, "block 4": 4}
"""Block of the checkpoint, if it is SDAR."""
Row = dict[str, float]


def run(llm: LLM, length: int, seed: int) -> Row:
    engine = llm.llm_engine
    params = SamplingParams(
        temperature=0,
        max_tokens=STEPS + 1,
        ignore_eos=True,
        extra_args={"dllm_threshold": 1.0},
    )
    [ids] = random_prompts(seed, 1, length)
    engine.add_request(f"{length}-{seed}", {"prompt_token_ids": ids}, params)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    start, outputs = time.process_time(), []
    while not outputs:
        outputs = engine.step()
    first, steps = time.process_time(), 0
    while engine.has_unfinished_requests():
        engine.step()
        steps += 1
    return {
        "prompt_tokens_per_second": length / (first - start),
        "ms_per_step": 1000 * (time.process_time() - first) / steps,
        "mib_at_the_peak": (memory("VmHWM") - before) / 2**20,
    }


def engine_of(folder: Path, block: int | None) -> LLM:
    return LLM(
        str(checkpoints.make(folder, block, SHAPE)),
        max_model_len=max(LENGTHS) + 256,
        max_num_seqs=4,
        enforce_eager=True,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engines = {
            name: engine_of(Path(folder) / name, block)
            for name, block in ENGINES.items()
        }
        for llm in engines.values():
            run(llm, max(LENGTHS), 0)
        for seed in range(1, args.repeats + 1):
            for length in LENGTHS:
                for name, llm in engines.items():
                    row = run(llm, length, seed)
                    runs.setdefault(f"{length}, {name}", []).append(row)
                    print(length, name, row, flush=True)
    rows: dict[str, dict[str, Any]] = {
        name: {key: median(row[key] for row in each) for key in each[0]}
        for name, each in runs.items()
    }
    print("| prompt, engine | prompt tokens/CPU s | CPU ms/step | MiB at the peak |")
    print("|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[key]:.1f}" for key in row) + " |")
    write({**conditions(args.repeats), "runs": rows}, args.out)


if __name__ == "__main__":
    main()
