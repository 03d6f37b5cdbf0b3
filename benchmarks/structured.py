"""Structured output on the bundled model: rules against one token a step.

    make serve &
    python benchmarks/structured.py --count 150 --out docs/benchmarks/structured.json
    python benchmarks/structured.py --count 2000 --repeats 1 --only "threshold 0.95"

The JSON skill on held-out inputs with its schema, 8 requests at a time. Settings take
turns; speeds are medians. An answer is valid if the schema allows it; those at
temperature 1 are checked for nothing else.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jsonschema import ValidationError, validate
from results import write

from tools.tiny import skills

CONCURRENCY = 8
INTEGER = {"type": "integer"}
RESULTS = [INTEGER, {"type": "string"}, {"type": "array", "items": INTEGER}]
SCHEMA = {
    "type": "object",
    "properties": {"result": {"anyOf": RESULTS}},
    "required": ["result"],
    "additionalProperties": False,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sequential": {"dllm_algorithm": "sequential"},
    "low_confidence": {"dllm_algorithm": "low_confidence"},
    "threshold 0.95": {"dllm_algorithm": "threshold", "dllm_threshold": 0.95},
    "threshold 0.8": {"dllm_algorithm": "threshold", "dllm_threshold": 0.8},
    "entropy_bounded": {"dllm_algorithm": "entropy_bounded"},
}


def ask(base_url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{base_url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def is_valid(text: str) -> bool:
    try:
        validate(json.loads(text), SCHEMA)
    except (ValueError, ValidationError):
        return False
    return True


def measure(
    base_url: str,
    examples: list[skills.Example],
    fields: dict[str, Any],
    temperature: float,
) -> dict[str, float]:
    """Of one pass over the examples."""
    bodies = [
        {
            "messages": [{"role": "user", "content": example.question}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": SCHEMA},
            },
            "temperature": temperature,
            "seed": seed,
            "max_tokens": 96,
            "vllm_xargs": fields,
        }
        for seed, example in enumerate(examples)
    ]
    start = time.perf_counter()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(lambda body: ask(base_url, body), bodies))
    seconds = time.perf_counter() - start
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    ended = [answer["choices"][0]["finish_reason"] == "stop" for answer in answers]
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    rights = [text == e.answer for text, e in zip(texts, examples, strict=True)]
    return {
        "answers": len(answers),
        "ended": sum(ended),
        "valid": sum(map(is_valid, texts)),
        "exact": sum(rights) / len(answers),
        "tokens_per_forward": tokens / sum(a["usage"]["nfe"] for a in answers),
        "tokens_per_second": tokens / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--count", type=int, default=500, help="answers of a pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    examples = skills.held_out_examples("json", args.count, 0)
    rows: dict[str, dict[str, float]] = {}
    for temperature in (0.0, 1.0):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in args.only}
        for _ in range(args.repeats):
            for name, passes in found.items():
                fields = SETTINGS[name]
                row = measure(args.base_url, examples, fields, temperature)
                passes.append(row)
        for name, passes in found.items():
            speed = statistics.median(row["tokens_per_second"] for row in passes)
            row = passes[0] | {"tokens_per_second": speed}
            rows[f"{name}, temperature {temperature:g}"] = row
            print(
                f"| {name} | {temperature:g} | {row['valid']:.0f} of "
                f"{row['ended']:.0f} ended | {100 * row['exact']:.1f} % | "
                f"{row['tokens_per_forward']:.2f} | {speed:.0f} |",
                flush=True,
            )
    write(rows, args.out)


if __name__ == "__main__":
    main()
