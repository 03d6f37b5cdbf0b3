"""Exact match of the tiny checkpoint on held-out inputs, through an OpenAI server.

    python tools/eval_tiny.py --base-url http://127.0.0.1:8000/v1 --count 500

`--long` asks the skills with answers of 100 tokens instead of the short ones.
`--local FOLDER` decodes with the reference implementation instead of a server. Forwards
come from the server's /metrics, so nothing else should use the server meanwhile; one
forward there is one request's denoising step, whatever it was batched with.
"""

import argparse
import json
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.tiny import skills

Row = dict[str, float]


def read_counter(base_url: str, name: str) -> float | None:
    """Sum of a counter over its labels; None when the server does not export it."""
    url = base_url.rstrip("/").removesuffix("/v1") + "/metrics"
    with urllib.request.urlopen(url) as reply:
        lines = reply.read().decode().splitlines()
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith((f"{name} ", f"{name}{{"))
    ]
    return sum(values) if values else None


def ask_skill(args: argparse.Namespace, client: Any, skill: str) -> Row:
    """One skill's held-out questions, `concurrency` at a time."""

    def ask(example: skills.Example) -> tuple[bool, int]:
        reply = client.chat.completions.create(
            model=args.model,
            messages=[{"role": "user", "content": example.question}],
            temperature=0,
            max_tokens=args.max_tokens,
            extra_body=args.extra_body,
        )
        text = reply.choices[0].message.content
        return text == example.answer, reply.usage.completion_tokens

    before = read_counter(args.base_url, args.forwards_metric)
    examples = skills.held_out_examples(skill, args.count, args.seed)
    with ThreadPoolExecutor(args.concurrency) as pool:
        answers = list(pool.map(ask, examples))
    after = read_counter(args.base_url, args.forwards_metric)
    tokens = sum(count for _, count in answers)
    row = {
        "exact": sum(right for right, _ in answers) / len(answers),
        "tokens": tokens / len(answers),
    }
    forwards = (after or 0.0) - (before or 0.0)
    if forwards > 0:
        row["tokens_per_forward"] = tokens / forwards
        row["forwards"] = forwards / len(answers)
    return row


def ask_server(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Row]:
    """These skills through chat completions."""
    from openai import OpenAI

    client = OpenAI(base_url=args.base_url, api_key="none")
    args.model = args.model or client.models.list().data[0].id
    return {skill: ask_skill(args, client, skill) for skill in names}


def ask_reference(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Row]:
    """These skills through the reference decoder, on one thread."""
    import torch

    from tools.tiny.local_eval import evaluate
    from tools.tiny.recipes import recipe_of

    torch.set_num_threads(1)
    recipe = recipe_of(args.local)
    model = recipe.load(args.local)
    return evaluate(recipe, model, args.count, args.seed, names)


def print_table(table: dict[str, Row]) -> None:
    """skill | exact match | tokens per request | tokens per forward."""
    print(f"{'skill':12} | exact match | tokens/request | tokens/forward")
    for skill, row in table.items():
        rate = row.get("tokens_per_forward")
        shown = f"{rate:14.2f}" if rate else f"{'-':>14}"
        print(f"{skill:12} | {row['exact']:11.3f} | {row['tokens']:14.2f} | {shown}")
    rows = table.values()
    if all("forwards" in row for row in rows):
        tokens = sum(row["tokens"] for row in rows)
        forwards = sum(row["forwards"] for row in rows)
        print(f"mean tokens per forward over all skills: {tokens / forwards:.2f}")


def main() -> None:
    """Parse, ask, print, and write the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--local", type=Path, help="checkpoint folder; no server")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the held-out draw")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, help="default: 64; 128 of long ones")
    parser.add_argument("--long", action="store_true", help="skills of long answers")
    parser.add_argument("--model", help="default: the server's first model")
    parser.add_argument("--extra-body", type=json.loads, default={})
    parser.add_argument(
        "--forwards-metric", default="vllm:diffusion_num_denoising_steps_total"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    started = time.perf_counter()
    args.max_tokens = args.max_tokens or (128 if args.long else 64)
    names = tuple(skills.LONG_TASKS) if args.long else skills.SKILLS
    table = (ask_reference if args.local else ask_server)(args, names)
    print_table(table)
    if args.out:
        record = {
            "count": args.count,
            "seconds": time.perf_counter() - started,
            "skills": table,
        }
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
