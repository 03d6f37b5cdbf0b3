"""Several blocks of a request at a time against one, by the engine's CPU time.

    python benchmarks/blocks_cpu.py --out docs/benchmarks/blocks_cpu.json

The requests of blocks.py on an offline engine in this process: what a step costs where
other work shares the machine, and wall time says little. Medians of alternating runs.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import checkpoints
from blocks import BLOCK, CONCURRENCY, SIZES, fields_of
from engine import PROMPT, TOKENS, conditions
from results import write
from server import random_prompts
from vllm import LLM, SamplingParams

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

Row = dict[str, float]


def run(engine: "LLMEngine", concurrency: int, size: int, seed: int) -> Row:
    params = SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args=fields_of(size)
    )
    for number, ids in enumerate(random_prompts(seed, concurrency, PROMPT)):
        prompt = {"prompt_token_ids": ids}
        engine.add_request(f"{seed}-{size}-{number}", prompt, params)
    start, steps = time.process_time(), 0
    while engine.has_unfinished_requests():
        engine.step()
        steps += 1
    seconds = time.process_time() - start
    return {
        "tokens_per_cpu_second": concurrency * TOKENS / seconds,
        "tokens_per_step": TOKENS / steps,
        "cpu_ms_per_step": 1000 * seconds / steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoints.make(Path(folder) / "sdar", BLOCK)
        llm = LLM(
            str(checkpoint),
            max_model_len=1024,
            max_num_seqs=16,
            enforce_eager=True,
            enable_prefix_caching=False,
            distributed_executor_backend="uni",
        )
        settings = [(c, size) for c in CONCURRENCY for size in SIZES]
        runs: dict[tuple[int, int], list[Row]] = {s: [] for s in settings}
        for seed in range(args.repeats + 1):
            for setting in settings:
                runs[setting].append(run(llm.llm_engine, *setting, seed))
    rows = {}
    print(
        "| run | tok/CPU s | tok/step of a request | CPU ms/step |\n|---|---|---|---|"
    )
    for (concurrency, size), (_, *measured) in runs.items():  # the first: a warm-up
        row = {name: median(r[name] for r in measured) for name in measured[0]}
        name = f"c={concurrency}, {size} in flight"
        rows[name] = row
        speed, tokens, step = row.values()
        print(f"| {name} | {speed:.1f} | {tokens:.2f} | {step:.2f} |")
    write({**conditions(args.repeats), "runs": rows}, args.out)


if __name__ == "__main__":
    main()
