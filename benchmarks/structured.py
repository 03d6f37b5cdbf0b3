"""Structured output on the bundled model: rules against one token a step.

    make serve &
    python benchmarks/structured.py --count 150 --out docs/benchmarks/structured.json
    python benchmarks/structured.py --count 2000 --repeats 1 --only "threshold 0.95"
    python benchmarks/structured.py --schemas --count 2000 --repeats 1

The JSON skill on held-out inputs with its schema, or ten schemas in turn that the model
knows nothing of (schemas.py), 8 requests at a time. Settings take turns; speeds are
medians. With `--server` (a process id) also tokens per second of CPU time, of the
server and all its processes, which other load does not change. An answer is valid if
the schema allows it; those at temperature 1 are checked for nothing else.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from jsonschema import ValidationError, validate
from results import write
from schemas import SCHEMAS

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


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        validate(json.loads(text), schema)
    except (ValueError, ValidationError):
        return False
    return True


def cpu_seconds(server: int | None) -> float:
    """Of a server and the processes that it started; 0 if none is named."""
    if server is None:
        return 0.0
    first = psutil.Process(server)
    family = [first, *first.children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def measure(
    base_url: str,
    examples: list[skills.Example],
    schemas: list[dict[str, Any]],
    fields: dict[str, Any],
    temperature: float,
    server: int | None,
) -> dict[str, float]:
    """Of one pass over the examples; `schemas` take turns."""
    turns = list(islice(cycle(schemas), len(examples)))
    bodies = [
        {
            "messages": [{"role": "user", "content": example.question}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema},
            },
            "temperature": temperature,
            "seed": seed,
            "max_tokens": 256,
            "vllm_xargs": fields,
        }
        for seed, (example, schema) in enumerate(zip(examples, turns, strict=True))
    ]
    start, cpu = time.perf_counter(), cpu_seconds(server)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(lambda body: ask(base_url, body), bodies))
    seconds, cpu = time.perf_counter() - start, cpu_seconds(server) - cpu
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    ended = [answer["choices"][0]["finish_reason"] == "stop" for answer in answers]
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    rights = [text == e.answer for text, e in zip(texts, examples, strict=True)]
    return {
        "answers": len(answers),
        "ended": sum(ended),
        "valid": sum(map(is_valid, texts, turns)),
        "exact": sum(rights) / len(answers),
        "tokens_per_forward": tokens / sum(a["usage"]["nfe"] for a in answers),
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu if cpu else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--count", type=int, default=500, help="answers of a pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    parser.add_argument("--schemas", action="store_true", help="the ten of schemas.py")
    parser.add_argument("--server", type=int, help="its process id")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    schemas = [*SCHEMAS.values()] if args.schemas else [SCHEMA]
    examples = skills.held_out_examples("json", args.count, 0)
    rows: dict[str, dict[str, float]] = {}
    for temperature in (0.0, 1.0):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in args.only}
        for _ in range(args.repeats):
            for name, passes in found.items():
                fields = SETTINGS[name]
                passes.append(
                    measure(
                        args.base_url,
                        examples,
                        schemas,
                        fields,
                        temperature,
                        args.server,
                    )
                )
        for name, passes in found.items():
            speeds = {
                key: statistics.median(row[key] for row in passes)
                for key in ("tokens_per_second", "tokens_per_cpu_second")
            }
            row = passes[0] | speeds
            rows[f"{name}, temperature {temperature:g}"] = row
            print(
                f"| {name} | {temperature:g} | {row['valid']:.0f} of "
                f"{row['ended']:.0f} ended | {100 * row['exact']:.1f} % | "
                f"{row['tokens_per_forward']:.2f} | "
                f"{row['tokens_per_second']:.0f} | "
                f"{row['tokens_per_cpu_second']:.0f} |",
                flush=True,
            )
    write(rows, args.out)


if __name__ == "__main__":
    main()
