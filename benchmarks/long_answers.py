"""Several blocks in flight on a trained model: what they gain, and what they get wrong.

    make serve MODEL=models/tiny-llada2-long &
    python benchmarks/long_answers.py --out docs/benchmarks/long_answers.json

Answers of a hundred tokens of models/tiny-llada2-long, held-out inputs, greedy: exact
match, tokens per forward and tokens per second, for each number of blocks in flight and
each decoded share at which the next one opens, through the running server. Nothing else
may use it meanwhile.
"""

from typing import Any

from results import write
from rules import arguments, ask, means

from tools.tiny.skills import LONG_TASKS

THRESHOLDS = (0.95, 0.999)
SHARES = (0.1, 0.5, 1.0)
BUFFERS: list[dict[str, Any]] = [
    {"dllm_buffer_size": 1},
    *(
        {"dllm_buffer_size": size, "dllm_add_block_threshold": share}
        for size in (2, 4)
        for share in SHARES
    ),
]
SETTINGS = [{"dllm_threshold": t, **buffer} for t in THRESHOLDS for buffer in BUFFERS]
MAX_TOKENS = 128


def main() -> None:
    args = arguments(__doc__)
    names = tuple(LONG_TASKS)
    columns = (
        "threshold",
        "in flight",
        "opens at",
        "exact match",
        "tokens/forward",
        "tokens/s",
    )
    columns += tuple(f"{name}: exact, tokens/forward" for name in names)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    results = []
    ask(args.base_url, 4, {}, MAX_TOKENS, names)  # a warm-up
    for setting in SETTINGS:
        table, speed = ask(args.base_url, args.count, setting, MAX_TOKENS, names)
        mean = means(table) | {"tokens_per_second": speed}
        results.append({"setting": setting, **mean, "skills": table})
        opens = setting.get("dllm_add_block_threshold", "-")
        cells = [str(setting["dllm_threshold"]), str(setting["dllm_buffer_size"])]
        cells += [str(opens)]
        cells += [f"{100 * mean['exact']:.1f} %", f"{mean['tokens_per_forward']:.2f}"]
        cells += [f"{speed:.0f}"]
        cells += [
            f"{100 * row['exact']:.1f} %, {row['tokens_per_forward']:.2f}"
            for row in table.values()
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    write(results, args.out)


if __name__ == "__main__":
    main()
