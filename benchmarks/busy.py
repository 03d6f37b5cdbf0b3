"""Load-aware decoding on the bundled model: what it gives, and what it costs.

    make serve ARGS="--dllm-busy-threshold 0.5 --dllm-busy-requests 4" &
    python benchmarks/busy.py --count 40

Held-out inputs of all skills, greedy. Settings take turns; speeds are medians.
"""

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from structured import ask

from tools.tiny import skills

SETTINGS: dict[str, dict[str, Any]] = {
    "its own 0.95": {"dllm_threshold": 0.95},
    "dllm_adaptive": {"dllm_threshold": 0.95, "dllm_adaptive": True},
    "always 0.5": {"dllm_threshold": 0.5},
}


def measure(
    base_url: str, examples: list[skills.Example], fields: dict[str, Any], clients: int
) -> dict[str, float]:
    """Of one pass over the examples."""
    bodies = [
        {
            "messages": [{"role": "user", "content": example.question}],
            "temperature": 0,
            "max_tokens": 96,
            **fields,
        }
        for example in examples
    ]
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda body: ask(base_url, body), bodies))
    seconds = time.perf_counter() - start
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    usages = [answer["usage"] for answer in answers]
    tokens = sum(usage["completion_tokens"] for usage in usages)
    forwards = sum(usage["nfe"] for usage in usages)
    rights = [text == e.answer for text, e in zip(texts, examples, strict=True)]
    return {
        "exact": sum(rights) / len(rights),
        "busy": sum(usage.get("nfe_busy", 0) for usage in usages) / forwards,
        "tokens_per_forward": tokens / forwards,
        "tokens_per_second": tokens / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--count", type=int, default=40, help="inputs of a skill")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    examples = [
        example
        for skill in skills.SKILLS
        for example in skills.held_out_examples(skill, args.count, 0)
    ]
    for clients in (2, 16):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
        for _ in range(args.repeats):
            for name, passes in found.items():
                row = measure(args.base_url, examples, SETTINGS[name], clients)
                passes.append(row)
        for name, passes in found.items():
            speed = statistics.median(row["tokens_per_second"] for row in passes)
            row = passes[0]
            print(
                f"| {clients} | {name} | {100 * row['busy']:.0f} % | "
                f"{100 * row['exact']:.1f} % | {row['tokens_per_forward']:.2f} | "
                f"{speed:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
