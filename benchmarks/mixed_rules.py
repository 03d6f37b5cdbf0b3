"""What it costs to mix decoding rules in a batch: 4 rules against 1, in one run.

    python benchmarks/mixed_rules.py

32 requests at once on a mid-size random SDAR; alternating runs, medians. Steps are
compared, not answers: other rules decode in other orders.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import checkpoints
from vllm import LLM, SamplingParams

RULES = ("threshold", "low_confidence", "sequential", "entropy_bounded")
REQUESTS = 32
PROMPT, TOKENS = 64, 16


def params_of(rule: str) -> SamplingParams:
    extra: dict[str, Any] = {"dllm_algorithm": rule}
    if rule == "entropy_bounded":
        extra["dllm_entropy_bound"] = 0.0  # one token per step, like the others
    return SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args=extra
    )


def seconds_of(llm: LLM, rules: tuple[str, ...], seed: int) -> float:
    rng = random.Random(seed)
    prompts = [
        {"prompt_token_ids": [rng.randrange(5, 30000) for _ in range(PROMPT)]}
        for _ in range(REQUESTS)
    ]
    params = [params_of(rules[i % len(rules)]) for i in range(REQUESTS)]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert all(len(output.outputs[0].token_ids) == TOKENS for output in outputs)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sets = {rule: (rule,) for rule in RULES} | {"all four": RULES}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoints.make(Path(folder), args.block)
        llm = LLM(
            str(checkpoint),
            max_model_len=512,
            max_num_seqs=REQUESTS,
            enable_prefix_caching=False,
        )
        runs: dict[str, list[float]] = {name: [] for name in sets}
        for seed in range(args.repeats + 1):
            for name, rules in sets.items():
                seconds = seconds_of(llm, rules, seed)
                if seed > 0:
                    runs[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in runs.items()}
    for name, seconds in medians.items():
        print(f"{name}: {seconds:.2f} s")
    single = statistics.mean(medians[rule] for rule in RULES)
    print(f"all four / mean of one rule: {medians['all four'] / single:.3f}")


if __name__ == "__main__":
    main()
