"""Our server against plain loops on a model with full attention, one run.

    python benchmarks/full_attention.py --out docs/benchmarks/full_attention.json

Every cache of the authors: none (LLaDA's `generate`, two tokens per forward), and
Fast-dLLM's prefix and dual, which decode by a threshold. "plain loop" is the authors'
algorithm of tests/reference in bfloat16, with logits of all rows that it forwards, as
in their code; "lean loop" has those of the block alone. One compute thread on each
side; nothing else may run meanwhile. Alternating runs, medians, the same prompts on
all sides. Weights are random, with attention and head scaled so that a threshold
decodes several tokens per forward (`checkpoints.make_llada`); it is searched with
the loop. With random weights rounding decides what passes a threshold, so the forwards
of one request say little: where a threshold decides, every run is of the same eight
requests, `c` of them at once. Forwards are counted on both sides, and a difference is
reported. Prefix and dual are measured a second time with a fixed number of steps, which
is the same work for every request.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import checkpoints
import torch
from engine import (
    PROMPT,
    TOKENS,
    alternate,
    conditions,
    measure_loop,
    ratio,
    server_measures,
    show,
)
from lean_full_attention import LeanLoop
from plain_loop import Result
from results import write
from server import Run, Server, random_prompts, serve

from tests.reference import llada_generate
from tests.reference.llada import LLaDA

BLOCK = 32
STEPS = 64
"""Forwards of a whole answer without a cache."""
EVEN_STEPS = 48
"""The same with a cache, where no threshold decides."""
CONCURRENCY = (1, 4, 8)
EVEN_CONCURRENCY = (1, 8)
THRESHOLD_REQUESTS = 8
"""What a run with a threshold is of; others are of as many as run at once."""
CACHES = ("none", "prefix", "dual")
EVEN = f", {EVEN_STEPS} steps"
NAMES = ("none", "prefix", f"prefix{EVEN}", "dual", f"dual{EVEN}")
"""What can be measured: a cache, with a threshold or with even steps."""
WANTED = 2.5
"""Tokens per forward that the threshold is to give."""
ALLOWED = (2.0, 4.0)


class PlainLoop:
    """The authors' functions, as tests/reference has them."""

    def __init__(self, checkpoint: Path) -> None:
        model = LLaDA.from_pretrained(checkpoint)
        self.model = model.to(torch.bfloat16)
        self.mask = model.config.mask_token_id

    def generate(self, prompt: list[int], **rule: Any) -> Result:
        """Greedy; `rule` is of `llada_generate.generate`."""
        fields = {"mask_id": self.mask, **rule}
        return Result(
            *llada_generate.generate(self.model, prompt, TOKENS, BLOCK, **fields)
        )


Loops = dict[str, Callable[..., Result]]
"""Yardsticks by name: prompt, `cache` and the rule's fields to tokens."""


def tokens_per_forward(loop: LeanLoop, cache: str, threshold: float) -> float:
    prompts = random_prompts(0, 3, PROMPT)
    found = [
        loop.generate(prompt, TOKENS, BLOCK, cache, threshold=threshold)
        for prompt in prompts
    ]
    return len(prompts) * TOKENS / sum(result.forwards for result in found)


def find_threshold(loop: LeanLoop, cache: str) -> float:
    """The threshold that comes nearest to `WANTED`, by halving."""
    low, high = 0.0, 1.0
    tried: dict[float, float] = {}
    for _ in range(8):
        middle = round((low + high) / 2, 3)
        tried[middle] = tokens_per_forward(loop, cache, middle)
        print(f"  threshold {middle}: {tried[middle]:.2f} tok/forward", flush=True)
        if abs(tried[middle] - WANTED) < 0.15:
            break
        if tried[middle] > WANTED:
            low = middle
        else:
            high = middle
    return min(tried, key=lambda threshold: abs(tried[threshold] - WANTED))


def counted(
    forwards: dict[str, list[float]], name: str, measure: Callable[[int], Run]
) -> Callable[[int], Run]:
    """`measure`, which also keeps the forwards per request of every measured seed."""

    def call(seed: int) -> Run:
        run = measure(seed)
        if seed > 0:
            forwards.setdefault(name, []).append(run.forwards * TOKENS / run.tokens)
        return run

    return call


def measure_cache(
    server: Server,
    loops: Loops,
    cache: str,
    rule: dict[str, Any],
    concurrency: tuple[int, ...],
    n: int,
) -> dict[str, Any]:
    """The table's rows of one cache, and the forwards per request of all runs."""
    asked = {f"dllm_{name}": value for name, value in rule.items()}
    by_threshold = "threshold" in rule
    asked["dllm_algorithm"] = "threshold" if by_threshold else "low_confidence"
    requests = {"requests": THRESHOLD_REQUESTS} if by_threshold else {}
    measures = server_measures(
        server,
        concurrency,
        **requests,
        vllm_xargs={"dllm_cache": cache, "dllm_block_length": BLOCK, **asked},
    )
    for name, generate in loops.items():
        one = partial(generate, cache=cache, **rule)
        measures[name] = partial(measure_loop, one, **requests)
    forwards: dict[str, list[float]] = {}
    rows: dict[str, Any] = alternate(
        n, {name: counted(forwards, name, run) for name, run in measures.items()}
    )
    return rows | {"forwards_per_request": forwards}


def report_forwards(cache: str, forwards: dict[str, list[float]]) -> None:
    """Say whether both sides did the same work, request by request."""
    ours, loop = forwards["c=1"], forwards["plain loop"]
    print(f"{cache}: forwards of each run, c=1 {ours}, loop {loop}")
    for name, counts in forwards.items():
        difference = sum(counts) / sum(loop) - 1
        if abs(difference) > 0.05:
            print(f"{cache}: NOT THE SAME WORK: {name} forwards {difference:+.0%}")
        given = TOKENS * len(counts) / sum(counts)
        if not ALLOWED[0] <= given <= ALLOWED[1]:
            print(f"{cache}: {name} has {given:.2f} tokens per forward")


Measure = tuple[str, dict[str, Any], tuple[int, ...]]
"""A cache, a rule's fields, and how many requests at once."""


def plan(
    names: list[str], threshold: float | None, concurrency: tuple[int, ...]
) -> Iterator[tuple[str, Measure]]:
    """What is measured, by name."""
    for name in names:
        if name == "none":
            yield name, (name, {"steps": STEPS}, concurrency)
        elif name in CACHES:
            yield name, (name, {"threshold": threshold}, concurrency)
        else:
            few = tuple(c for c in concurrency if c in EVEN_CONCURRENCY)
            yield name, (name.removesuffix(EVEN), {"steps": EVEN_STEPS}, few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY)
    parser.add_argument("--threshold", type=float, help="instead of the search")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = conditions(args.repeats)
    results.update(block=BLOCK, steps_without_cache=STEPS, even_steps=EVEN_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = checkpoints.make_llada(work / "llada")
        lean = LeanLoop(checkpoint)
        loops: Loops = {
            "plain loop": PlainLoop(checkpoint).generate,
            "lean loop": partial(lean.generate, max_tokens=TOKENS, block=BLOCK),
        }
        threshold = args.threshold
        if threshold is None and {"prefix", "dual"} & set(args.only):
            threshold = find_threshold(lean, "dual")
        results["threshold"] = threshold
        with serve(checkpoint, log=work / "llada.log") as server:
            for name, (cache, rule, concurrency) in plan(
                args.only, threshold, tuple(args.concurrency)
            ):
                print(name, flush=True)
                results[name] = measure_cache(
                    server, loops, cache, rule, concurrency, args.repeats
                )
                write(results, args.out)
    show_all(results)
    write(results, args.out)


def show_all(results: dict[str, Any]) -> None:
    """Print the table of docs/benchmarks.md, and what is not to be read from it."""
    measured = [name for name in results if name.startswith(CACHES)]
    forwards = {name: results[name].pop("forwards_per_request") for name in measured}
    show(results)
    for name in measured:
        rows = results[name]
        for loop in ("plain loop", "lean loop"):
            faster = rows[loop]["ms_per_step"] / rows["c=1"]["ms_per_step"]
            print(
                f"{name}: c=1 is {ratio(rows, 'c=1', loop):.2f} x the {loop}, "
                f"{faster:.2f} x per forward"
            )
        report_forwards(name, forwards[name])
        results[name]["forwards_per_request"] = forwards[name]
    if {"none", "dual"} <= set(measured) and "c=8" in results["none"]:
        both = {cache: results[cache]["c=8"] for cache in ("none", "dual")}
        print(f"c=8: dual is {ratio(both, 'dual', 'none'):.2f} x none")


if __name__ == "__main__":
    main()
