"""The caches of full attention on the tiny LLaDA: what they cost and what they give.

    make serve MODEL=models/tiny-llada &
    python benchmarks/caches.py --count 100 --out docs/benchmarks/caches.json

Exact match on held-out inputs, tokens per forward and tokens per second, through the
running server; a canvas of 32 tokens in one block or in four. `none` is the model's own
answer; a block of the whole canvas leaves `prefix` and `dual` the prompt to be stale.
Nothing else may use the server meanwhile.
"""

from typing import Any

from results import write
from rules import arguments, measure

CANVAS = 32
BLOCKS = (32, 8)
CACHES = ("none", "prefix", "dual")
RULES: tuple[dict[str, Any], ...] = (
    {"dllm_algorithm": "low_confidence", "dllm_steps": CANVAS},
    {"dllm_algorithm": "threshold", "dllm_threshold": 0.9},
)


def main() -> None:
    args = arguments(__doc__)
    columns = ("rule", "block", "cache", "arithmetic", "all skills")
    columns += ("tokens/forward", "tokens/s")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    results = []
    for rule in RULES:
        for block in BLOCKS:
            for cache in CACHES:
                where = {"dllm_block_length": block, "dllm_cache": cache}
                row = measure(args.base_url, args.count, {**rule, **where}, CANVAS)
                results.append({"setting": {**rule, **where}, **row})
                print(
                    f"| `{rule['dllm_algorithm']}` | {block} | `{cache}` | "
                    f"{100 * row['arithmetic']:.1f} % | {100 * row['exact']:.1f} % | "
                    f"{row['tokens_per_forward']:.2f} | "
                    f"{row['tokens_per_second']:.0f} |",
                    flush=True,
                )
    write(results, args.out)


if __name__ == "__main__":
    main()
