"""What a stream of drafts costs the requests beside it.

    VLLM_PLUGINS=dllm vllm serve models/tiny-llada2 &
    python benchmarks/drafts.py --out docs/benchmarks/drafts.json

Seven plain streams run beside an eighth one, which is of stable text or of drafts. All
decode 256 tokens, one per forward, past any end token. What is compared is the time of
the seven, in runs that follow each other; the ratio is the median of these pairs, which
does not move when the machine's speed does.
"""

import argparse
import json
import statistics
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from results import write

TOKENS = 256
OTHERS = 7
PROMPT = "<role>HUMAN</role>Copy: abc.<|role_end|><role>ASSISTANT</role>"


def stream(base_url: str, mode: str) -> float:
    """Read one stream to its end; seconds."""
    body: dict[str, Any] = {
        "prompt": PROMPT,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "algorithm": "sequential",
        "stream": True,
        "stream_mode": mode,
    }
    request = urllib.request.Request(
        f"{base_url}/v1/generate",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    start = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        lines = [line for line in response if line.startswith(b"data:")]
    assert lines[-1] == b"data: [DONE]\n", lines[-1]
    return time.perf_counter() - start


def seconds_of_others(base_url: str, mode: str) -> float:
    """Mean time of the plain streams beside one of `mode`."""
    with ThreadPoolExecutor(OTHERS + 1) as pool:
        one = pool.submit(stream, base_url, mode)
        others = list(pool.map(stream, [base_url] * OTHERS, ["block_append"] * OTHERS))
        one.result()
    return statistics.mean(others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    times: dict[str, list[float]] = {"block_append": [], "denoise": []}
    for number in range(args.repeats + 1):
        for mode, found in times.items():
            seconds = seconds_of_others(args.base_url, mode)
            if number:  # the first is a warm-up
                found.append(seconds)
    medians = {mode: statistics.median(found) for mode, found in times.items()}
    pairs = zip(times["denoise"], times["block_append"], strict=True)
    ratio = statistics.median(drafts / plain for drafts, plain in pairs)
    print(f"beside stable text: {medians['block_append']:.3f} s")
    print(f"beside drafts:      {medians['denoise']:.3f} s, {ratio:.3f} times")
    write({"seconds": times, "medians": medians, "ratio": ratio}, args.out)


if __name__ == "__main__":
    main()
