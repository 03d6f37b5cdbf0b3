"""Roll-outs for reinforcement learning: many requests at a time, by both offline ways.

    python benchmarks/rollout.py --out docs/benchmarks/rollout.json

The same requests through `LLM.generate` and through `AsyncLLM`, `--in-flight` of them
at a time, and a few of them through a plain loop. `--prompt` and `--tokens` scale a
roll-out of 4K/1.5K tokens to the machine. Every way runs twice, in turn with the
others: what the second run adds to the peak of the memory is growth. Beside the tokens
of a second there are those of a second of CPU time, of all processes together, which a
busy machine changes little.
"""

import argparse
import asyncio
import os
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import checkpoints
import psutil
import torch
from plain_loop import PlainLoop
from results import write
from server import random_prompts
from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

BLOCK = 4
THRESHOLD = 0.9
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
LOOPED = 4
"""Requests of the plain loop, of which each takes as long as any other."""


def counter(name: str) -> int:
    metrics = [m for m in get_metrics_snapshot() if isinstance(m, Counter)]
    return sum(m.value for m in metrics if m.name == f"vllm:{name}")


def family() -> list[psutil.Process]:
    """This process and those that it started."""
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def cpu_seconds() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in family())


def peak_gigabytes() -> float:
    """The most that was ever resident, of each process."""
    peaks = [Path(f"/proc/{process.pid}/status").read_text() for process in family()]
    found = [PEAK.search(text) for text in peaks]
    return sum(int(peak[1]) for peak in found if peak) / 2**20


def measured(name: str, run: Callable[[], int]) -> dict[str, Any]:
    """What a run that gives so many tokens takes."""
    steps = counter("diffusion_num_denoising_steps")
    preempted = counter("num_preemptions")
    start, cpu = time.perf_counter(), cpu_seconds()
    tokens = run()
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    row = {
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu,
        "forwards": counter("diffusion_num_denoising_steps") - steps,
        "preemptions": counter("num_preemptions") - preempted,
        "peak_gigabytes": peak_gigabytes(),
    }
    numbers = ", ".join(f"{value:.4g} {key}" for key, value in row.items())
    print(f"{name}: {numbers}", flush=True)
    return row


def in_turn(runs: dict[str, Callable[[], int]]) -> dict[str, list[dict[str, Any]]]:
    """Each run twice."""
    rounds = [[measured(*item) for item in runs.items()] for _ in range(2)]
    return dict(zip(runs, map(list, zip(*rounds, strict=True)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pages", type=int, help="fewer than fit all requests")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prompts = random_prompts(1, args.requests, args.prompt)
    results: dict[str, Any] = {"arguments": {**vars(args), "out": None}}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoints.make(Path(folder), BLOCK)
        options = {
            "model": str(checkpoint),
            "max_num_seqs": max(args.in_flight),
            "max_model_len": args.prompt + args.tokens,
            "num_gpu_blocks_override": args.pages,
            "enable_prefix_caching": False,
            "disable_log_stats": False,
        }
        llm = LLM(**options)
        loop = PlainLoop(checkpoint, BLOCK, checkpoints.SHAPE["vocab_size"] - 1)
        runs = {
            f"LLM, {count}": partial(by_llm, llm, prompts, args.tokens, count)
            for count in args.in_flight
        }
        runs["plain loop"] = partial(by_loop, loop, prompts[:LOOPED], args.tokens)
        results |= in_turn(runs)
        llm.llm_engine.engine_core.shutdown()
        results |= asyncio.run(through_async(options, prompts, args))
    write(results, args.out)


def params(tokens: int) -> SamplingParams:
    fields = {"dllm_threshold": THRESHOLD}
    return SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=fields
    )


def by_llm(llm: LLM, prompts: list[list[int]], tokens: int, count: int) -> int:
    made = 0
    for first in range(0, len(prompts), count):
        part = [{"prompt_token_ids": ids} for ids in prompts[first : first + count]]
        outputs = llm.generate(part, params(tokens), use_tqdm=True)
        made += sum(len(output.outputs[0].token_ids) for output in outputs)
    return made


async def through_async(
    options: dict[str, Any], prompts: list[list[int]], args: argparse.Namespace
) -> dict[str, Any]:
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
    loop = asyncio.get_running_loop()

    def run(count: int) -> int:
        made = by_async(engine, prompts, args.tokens, count)
        return asyncio.run_coroutine_threadsafe(made, loop).result()

    runs = {f"AsyncLLM, {count}": partial(run, count) for count in args.in_flight}
    results = await asyncio.to_thread(in_turn, runs)
    engine.shutdown()
    return results


async def by_async(
    engine: AsyncLLM, prompts: list[list[int]], tokens: int, count: int
) -> int:
    free = asyncio.Semaphore(count)

    async def one(number: int, ids: list[int]) -> int:
        made = 0
        async with free:
            name = f"{time.perf_counter_ns()}-{number}"
            prompt = {"prompt_token_ids": ids}
            async for output in engine.generate(prompt, params(tokens), name):
                made = len(output.outputs[0].token_ids)
        return made

    return sum(await asyncio.gather(*(one(n, ids) for n, ids in enumerate(prompts))))


def by_loop(loop: PlainLoop, prompts: list[list[int]], tokens: int) -> int:
    return sum(
        len(
            loop.generate(p, max_tokens=tokens, threshold=THRESHOLD, steps=BLOCK).tokens
        )
        for p in prompts
    )


if __name__ == "__main__":
    main()
