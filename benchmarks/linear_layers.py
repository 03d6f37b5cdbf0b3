"""How the time of the linear layers grows with the rows of a batch.

    python benchmarks/linear_layers.py --out docs/benchmarks/linear_layers.json

The linear layers of the random SDAR of engine.py, in order, on vLLM's CPU kernel, with
nothing between them; bfloat16, one thread, medians. Weights are read once for a batch,
so the first rows cost little; once arithmetic takes longer than reading, every row
costs as much as the one before, and batching has nothing left to give.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from checkpoints import SHAPE
from engine import conditions
from results import write
from vllm._custom_ops import create_onednn_mm, onednn_mm

ROWS = (1, 4, 5, 8, 16, 20, 32, 40, 64, 128, 256, 2048)
DUAL = {256: 4, 32: 44}
"""Rows and number of the steps of a request of full_attention.py with the dual cache:
a refresh in each of 4 blocks, 48 steps."""
REPEATS = 15


def layer_shapes() -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers of one of the model's layers."""
    hidden, inner, dim = (
        SHAPE[name] for name in ("hidden_size", "intermediate_size", "head_dim")
    )
    heads, keys = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
    return [
        (hidden, (heads + 2 * keys) * dim),
        (heads * dim, hidden),
        (hidden, 2 * inner),
        (inner, hidden),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shapes = layer_shapes() * SHAPE["num_hidden_layers"]
    layers = [
        (create_onednn_mm(torch.randn(n, k, dtype=torch.bfloat16).t(), 32), k)
        for k, n in shapes
    ]
    weights = sum(k * n for k, n in shapes)
    table: dict[int, dict[str, Any]] = {}
    print("| rows | ms | GB/s of weights | GFLOP/s |\n" + "|---" * 4 + "|")
    for rows in ROWS:
        inputs = {k: torch.randn(rows, k, dtype=torch.bfloat16) for k, _ in shapes}
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            for layer, k in layers:
                onednn_mm(layer, inputs[k], None)
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        table[rows] = {
            "ms": 1000 * seconds,
            "gigabytes_per_second": 2 * weights / seconds / 1e9,
            "gigaflops": 2 * weights * rows / seconds / 1e9,
        }
        ms, read, work = table[rows].values()
        print(f"| {rows} | {ms:.1f} | {read:.1f} | {work:.0f} |", flush=True)
    for block, one, eight in (("4", 5, 40), ("32", 32, 256)):
        most = 8 * table[one]["ms"] / table[eight]["ms"]
        print(
            f"block {block}: 8 requests of {one} rows make {most:.2f} x the tokens of 1"
        )
    one, eight = (
        sum(steps * table[requests * rows]["ms"] for rows, steps in DUAL.items())
        for requests in (1, 8)
    )
    print(f"dual: 8 requests make {8 * one / eight:.2f} x the tokens of 1")
    write({**conditions(REPEATS), "rows": table}, args.out)


if __name__ == "__main__":
    main()
