"""A free request beside requests with a grammar, against the same beside free ones.

    export OMP_NUM_THREADS=1 VLLM_PLUGINS=dllm VLLM_ENABLE_V1_MULTIPROCESSING=0
    python benchmarks/structured_beside.py

Offline, engine and worker in this process: CPU time of a step, which other load does
not change. Long answers on both sides, so that requests join as often; turns of both
kinds alternate, and the figure is the median of their ratios.
"""

import argparse
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

ITEMS = 60
"""Of the array that a schema asks for."""
SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 10, "maximum": 99},
    "minItems": ITEMS,
    "maxItems": ITEMS,
}
MESSAGES = [{"role": "user", "content": "Copy: 12, 34, 56"}]
ONE_A_STEP = {"dllm_algorithm": "low_confidence"}
FROM_THE_LEFT = {"dllm_algorithm": "sequential"}
KINDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("one token a step", ONE_A_STEP, ONE_A_STEP),
    ("the same, free ones from the left", ONE_A_STEP, FROM_THE_LEFT),
    ("default", {}, {}),
]
"""Fields of requests with a grammar, and of free ones. These hand tokens out when all
before them are there; those with a grammar do so in every step."""


def free(length: int, fields: dict[str, Any]) -> SamplingParams:
    """A request whose answer has exactly this length."""
    return SamplingParams(
        temperature=0, max_tokens=length, ignore_eos=True, extra_args=fields
    )


def milliseconds_per_step(
    llm: LLM, first: SamplingParams, beside: SamplingParams, count: int
) -> float:
    """CPU time of the steps of one request, with others beside it all the time."""
    tokenizer, engine = llm.get_tokenizer(), llm.llm_engine
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    prompt = {
        "prompt_token_ids": [*(ids if isinstance(ids, list) else ids["input_ids"])]
    }
    engine.add_request("first", prompt, first)
    numbers = map(str, range(1_000_000))
    running = set(islice(numbers, count))
    for name in running:
        engine.add_request(name, prompt, beside)
    engine.step()  # prompts
    steps, started, is_over = 0, time.process_time(), False
    while not is_over:
        ended = {one.request_id for one in engine.step() if one.finished}
        steps, is_over = steps + 1, "first" in ended
        for name in islice(numbers, len(ended - {"first"})):
            running.add(name)
            engine.add_request(name, prompt, beside)
        running -= ended
    seconds = time.process_time() - started
    engine.abort_request([*running])
    while engine.has_unfinished_requests():
        engine.step()
    return 1e3 * seconds / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/tiny-llada2")
    parser.add_argument("--beside", type=int, default=7, help="other requests")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    llm = LLM(
        args.model,
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        disable_log_stats=False,
        distributed_executor_backend="uni",
        structured_outputs_config={"backend": "xgrammar"},
    )
    for name, fields, of_free in KINDS:
        grammar = SamplingParams(
            temperature=0,
            max_tokens=240,
            extra_args=fields,
            structured_outputs=StructuredOutputsParams(json=SCHEMA),
        )
        kinds = grammar, free(180, of_free)
        first = free(120, ONE_A_STEP)
        pairs = [
            [milliseconds_per_step(llm, first, kind, args.beside) for kind in kinds]
            for _ in range(args.repeats)
        ]
        ratio = statistics.median(beside / alone for beside, alone in pairs)
        grammars, frees = map(statistics.median, zip(*pairs, strict=True))
        print(f"| {name} | {grammars:.2f} | {frees:.2f} | {100 * ratio - 100:+.1f} % |")


if __name__ == "__main__":
    main()
