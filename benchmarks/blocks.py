"""Several blocks of a request at a time against one, in one server and one run.

    python benchmarks/blocks.py --out docs/benchmarks/blocks.json

The random SDAR of engine.py with blocks of 4, whose threshold never fires: with one
block a forward decodes one token. With several, one token of four opens the next block
and lets it be forced, so a forward decodes one token of each open block. The table says
what a forward of more blocks costs; how many tokens a trained model gains, and at what
loss, is its own.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
from engine import PROMPT, THRESHOLD, TOKENS, alternate, conditions
from results import write
from server import Run, Server, serve

BLOCK = 4
SIZES = (1, 2, 4)
CONCURRENCY = (1, 8)
SHARE = 0.25
"""Decoded share of a block at which the next one opens and is forced."""


def fields_of(size: int) -> dict[str, Any]:
    fields = {"dllm_threshold": THRESHOLD, "dllm_buffer_size": size}
    if size > 1:
        fields["dllm_add_block_threshold"] = SHARE
        fields["dllm_semi_complete_threshold"] = SHARE
    return fields


def measures_of(server: Server) -> dict[str, Callable[[int], Run]]:
    return {
        f"c={c}, {size} in flight": partial(ask, server, c, fields_of(size))
        for c in CONCURRENCY
        for size in SIZES
    }


def ask(server: Server, concurrency: int, fields: dict[str, Any], seed: int) -> Run:
    return server.run(concurrency, PROMPT, TOKENS, seed, vllm_xargs=fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoints.make(Path(folder) / "sdar", BLOCK)
        with serve(checkpoint, log=Path(folder) / "log") as server:
            measures = measures_of(server)
            for measure in measures.values():
                measure(0)  # a warm-up
            rows = alternate(args.repeats, measures)
    print("| run | tok/s | tok/forward | ms/step |\n|---|---|---|---|")
    for name, row in rows.items():
        speed, per_forward = row["tokens_per_second"], row["tokens_per_forward"]
        step = row["ms_per_step"]
        print(f"| {name} | {speed:.1f} | {per_forward:.2f} | {step:.2f} |")
    write({**conditions(args.repeats), "share": SHARE, "runs": rows}, args.out)


if __name__ == "__main__":
    main()
