"""Decoding rules on the bundled model: what each costs and what it gets right.

    make serve &
    python benchmarks/rules.py --count 100 --out docs/benchmarks/rules.json

Exact match over all skills on held-out inputs, tokens per forward, tokens per second
and forwards, for rules and parameters, through the running server. Nothing else may use
it meanwhile.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from results import write

from tools.eval_tiny import Row, ask_server
from tools.tiny.skills import SKILLS

SETTINGS: list[dict[str, Any]] = [
    {"dllm_algorithm": "sequential"},
    {"dllm_algorithm": "low_confidence"},
    {"dllm_algorithm": "low_confidence", "dllm_steps": 8},
    {"dllm_algorithm": "threshold", "dllm_threshold": 0.95},
    {"dllm_algorithm": "threshold", "dllm_threshold": 0.8},
    {"dllm_algorithm": "threshold", "dllm_threshold": 0.5},
    {"dllm_algorithm": "factor", "dllm_factor": 1.0},
    {"dllm_algorithm": "entropy_bounded", "dllm_entropy_bound": 0.1},
    {"dllm_algorithm": "entropy_bounded", "dllm_entropy_bound": 0.5},
    {"dllm_algorithm": "margin", "dllm_steps": 16},
    {"dllm_algorithm": "entropy", "dllm_steps": 16},
    {"dllm_algorithm": "random"},
    {"dllm_algorithm": "local_leap"},
    {"dllm_algorithm": "hierarchical", "dllm_threshold": 0.9},
    {
        "dllm_algorithm": "joint_threshold",
        "dllm_threshold": 0.7,
        "dllm_edit_threshold": 0.5,
    },
]


def measure(
    base_url: str, count: int, setting: dict[str, Any], max_tokens: int = 64
) -> dict[str, float]:
    """Means over all short skills, and over the two of arithmetic."""
    table, speed = ask(base_url, count, setting, max_tokens, SKILLS)
    arithmetic = (table["add"]["exact"] + table["subtract"]["exact"]) / 2
    return {**means(table), "arithmetic": arithmetic, "tokens_per_second": speed}


def means(table: dict[str, Row]) -> dict[str, float]:
    rows = table.values()
    tokens = sum(row["tokens"] for row in rows)
    return {
        "exact": sum(row["exact"] for row in rows) / len(table),
        "tokens_per_forward": tokens / sum(row["forwards"] for row in rows),
    }


def ask(
    base_url: str,
    count: int,
    setting: dict[str, Any],
    max_tokens: int,
    names: Sequence[str],
) -> tuple[dict[str, Row], float]:
    """A row for each skill, and the tokens per second of all."""
    args = SimpleNamespace(
        base_url=base_url,
        count=count,
        concurrency=8,
        max_tokens=max_tokens,
        model=None,
        seed=0,
        extra_body={"vllm_xargs": setting},
        forwards_metric="vllm:diffusion_num_denoising_steps_total",
    )
    start = time.perf_counter()
    table = ask_server(args, names)
    seconds = time.perf_counter() - start
    return table, count * sum(row["tokens"] for row in table.values()) / seconds


def arguments(description: str) -> argparse.Namespace:
    """Of a benchmark that asks a running server."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--count", type=int, default=100, help="inputs a skill")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments(__doc__)
    print("| rule | parameters | exact match | tokens/forward | tokens/s |")
    print("|---|---|---|---|---|")
    results = []
    for setting in SETTINGS:
        row = measure(args.base_url, args.count, setting)
        results.append({"setting": setting, **row})
        rule, *rest = (f"{value}" for value in setting.values())
        names = [name.removeprefix("dllm_") for name in list(setting)[1:]]
        parameters = ", ".join(f"{n} {v}" for n, v in zip(names, rest, strict=True))
        print(
            f"| `{rule}` | {parameters or 'defaults'} | {100 * row['exact']:.1f} % | "
            f"{row['tokens_per_forward']:.2f} | {row['tokens_per_second']:.0f} |",
            flush=True,
        )
    write(results, args.out)


if __name__ == "__main__":
    main()
