"""Real shapes on an accelerator: a forward against what it must read.

    python benchmarks/gpu.py --out docs/benchmarks/gpu.json
    python benchmarks/gpu.py --config llada     # LLaDA-8B's: none, prefix and dual
    python benchmarks/gpu.py --config tiny      # minutes on a CPU: a try, not a result

Random weights, so the rule decides how many tokens a forward gives: `sequential` with
even steps (gpu_shapes.py). Experts are drawn evenly (vLLM's routing
simulator): with random weights all masks would choose the same ones. The floor is the
larger of two times: bytes that a step must read over the rate of a large copy, and its
operations over the rate of a large matrix product, both measured here (floor.py).
"Outside" is what of a step is not the model's forward or its logits. Prefill is timed
twice, the second time with a causal mask and one row of attention per request.
`--trace FOLDER` writes what torch's profiler saw of some steps of each batch.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

# The engine runs in this process, so that its steps can be timed one by one.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from engine import conditions
from floor import copy_rate, floor, matmul_rate
from gpu_shapes import BLOCK, PLANS, TOKENS, Plan, Rule
from results import write
from server import random_prompts
from torch.profiler import profile, schedule
from vllm import LLM, SamplingParams
from vllm.platforms import current_platform

TRACED = 5
"""Steps of a trace."""


@dataclass
class Steps:
    """Seconds of the engine's steps for one batch of equal requests."""

    prefill: float
    """Up to the step that gave the last request its first token."""
    decode: list[float]


def start(folder: Path, plan: Plan, eager: bool, **options: Any) -> LLM:
    # The experts of vLLM's CPU build do not take simulated routes.
    if current_platform.device_type == "cuda":
        os.environ["VLLM_MOE_ROUTING_SIMULATION_STRATEGY"] = "uniform_random"
    return LLM(
        str(folder),
        load_format="dummy",
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=max(plan.prompts) + TOKENS + BLOCK,
        max_num_seqs=max(plan.batches),
        max_num_batched_tokens=plan.budget,
        # So that requests with long prompts start together.
        enable_prefix_caching=bool(plan.prefill_batches),
        enforce_eager=eager,
        worker_extension_cls="timer.ForwardTimer",
        additional_config={"dllm": {"block_size": BLOCK}},
        **options,
    )


def add_requests(llm: LLM, batch: int, prompt: int, rule: Rule, seed: int) -> None:
    vocab = llm.model_config.get_vocab_size()
    params = SamplingParams(
        temperature=0,
        max_tokens=TOKENS,
        ignore_eos=True,
        detokenize=False,
        extra_args=rule.extra_args,
    )
    for index, prompt_ids in enumerate(random_prompts(seed, batch, prompt)):
        ids = [token % (vocab - 1) for token in prompt_ids]
        llm.llm_engine.add_request(
            f"{time.time()}-{index}", {"prompt_token_ids": ids}, params
        )


def run(
    llm: LLM,
    batch: int,
    prompt: int,
    rule: Rule,
    seed: int = 0,
    profiler: profile | None = None,
) -> Steps:
    """One batch, step by step; the model is timed from the first decoding step on.

    A profiler is told of each decoding step. Steps after the first request's end do
    not count.
    """
    engine = llm.llm_engine
    add_requests(llm, batch, prompt, rule, seed)
    started: set[str] = set()
    prefill, decode = 0.0, []
    while running := engine.get_num_unfinished_requests():
        begin = time.perf_counter()
        outputs = engine.step()
        seconds = time.perf_counter() - begin
        if len(started) == batch:
            if running == batch:
                decode.append(seconds)
            if profiler:
                profiler.step()
            continue
        prefill += seconds
        started |= {o.request_id for o in outputs if o.outputs[0].token_ids}
        if len(started) == batch:
            llm.collective_rpc("reset_timer")
    return Steps(prefill, decode)


def trace(llm: LLM, batch: int, prompt: int, rule: Rule, folder: Path) -> None:
    """Write what the host and the device do in some decoding steps."""
    name = f"{rule.name}-{batch}-{prompt}"
    with profile(
        schedule=schedule(wait=2, warmup=2, active=TRACED, repeat=1)
    ) as profiler:
        run(llm, batch, prompt, rule, profiler=profiler)
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / f"{name}.json.gz"))
    averages = profiler.key_averages()
    sort = f"self_{current_platform.device_type}_time_total"
    table = averages.table(sort_by=sort, row_limit=60, max_name_column_width=90)
    (folder / f"{name}.txt").write_text(table)


def attend_causally(worker: Any, causal: bool) -> None:
    """Run in the worker: one row of attention per request, with a causal mask."""
    from vllm.v1.worker.gpu.attn_utils import build_attn_metadata

    from vllm_dllm.worker import model_state
    from vllm_dllm.worker.spans.rows import whole_rows

    def causal_rows(batch: Any, num_reqs: int, spans: Any) -> Any:
        return whole_rows(batch, num_reqs, batch.seq_lens[:num_reqs])

    def causal_metadata(*args: Any, **kwargs: Any) -> Any:
        return build_attn_metadata(*args, **{**kwargs, "causal": True})

    layout = worker.model_runner.model_state.slots.layout
    vars(layout).pop("attention_rows", None)
    model_state.build_attn_metadata = build_attn_metadata
    if causal:
        layout.attention_rows = causal_rows
        model_state.build_attn_metadata = causal_metadata


def mean_floor(
    config: dict[str, Any], rule: Rule, batch: int, prompt: int, *rates: float
) -> dict[str, Any]:
    """`floor` of the rule's steps but the first: the mean time, the last one's rest."""
    keys = batch * (prompt + TOKENS // 2)
    least = [floor(config, batch * rows, keys, *rates) for rows in rule.rows(prompt)]
    return least[-1] | {"floor_ms": statistics.mean(step["floor_ms"] for step in least)}


def measure_decoding(
    llm: LLM,
    config: dict[str, Any],
    rules: tuple[Rule, ...],
    rates: tuple[float, float],
    batch: int,
    prompt: int,
) -> list[dict[str, Any]]:
    """A row for each rule."""
    rows = []
    run(llm, batch, prompt, rules[-1])  # to warm up
    for rule in rules:
        steps = run(llm, batch, prompt, rule).decode
        timer = json.loads(llm.collective_rpc("read_timer")[0])
        step_ms = 1000 * statistics.mean(steps)
        model_ms = 1000 * timer["model"] / timer["forwards"]
        least = mean_floor(config, rule, batch, prompt, *rates)
        rows.append(
            {
                "batch": batch,
                "prompt": prompt,
                "rule": rule.name,
                "tokens_per_forward": rule.tokens_per_forward,
                "ms_per_step": step_ms,
                "median_ms_per_step": 1000 * statistics.median(steps),
                "model_ms": model_ms,
                "outside_ms": step_ms - model_ms,
                **least,
                "times_floor": step_ms / least["floor_ms"],
                "tokens_per_second": 1000 * batch * rule.tokens_per_forward / step_ms,
            }
        )
    print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_prefill(llm: LLM, batch: int, prompt: int, repeats: int) -> dict[str, Any]:
    """Block-causal and causal in turn, medians."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(repeats + 1):
        for causal, times in seconds.items():
            llm.collective_rpc(attend_causally, args=(causal,))
            seed = 2 + 2 * repeat + causal  # of prompts that no page is kept of
            took = run(llm, batch, prompt, Rule(4), seed).prefill
            if repeat:  # the first is to warm up
                times.append(took)
    llm.collective_rpc(attend_causally, args=(False,))
    ours, causal = (statistics.median(times) for times in seconds.values())
    row = {
        "batch": batch,
        "prompt": prompt,
        "tokens_per_second": batch * prompt / ours,
        "causal_tokens_per_second": batch * prompt / causal,
        "times_causal": ours / causal,
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=PLANS, default="mini")
    parser.add_argument("--repeats", type=int, default=5, help="of a prefill")
    parser.add_argument("--batches", type=int, nargs="+", help="instead of all")
    parser.add_argument("--prompts", type=int, nargs="+", help="instead of all")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--backend", help="of attention; default: vLLM's choice")
    parser.add_argument("--quantization", help="of weights while loading, as fp8")
    parser.add_argument("--ahead", action="store_true", help="plan steps ahead")
    parser.add_argument("--trace", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    plan = PLANS[args.config]
    device = torch.device(current_platform.device_type)
    rates = (copy_rate(device), matmul_rate(device))
    results: dict[str, Any] = {
        **conditions(args.repeats),
        "device": current_platform.get_device_name(),
        "config": args.config,
        "block": BLOCK,
        "tokens": TOKENS,
        "eager": args.eager,
        "backend": args.backend,
        "quantization": args.quantization,
        "ahead": args.ahead,
        "copy_terabytes_per_second": rates[0] / 1e12,
        "matmul_teraflops": rates[1] / 1e12,
        "decoding": [],
        "prefill": [],
    }
    prompts = args.prompts or plan.prompts
    results["prompt"] = list(prompts)
    options = {
        "attention_backend": args.backend,
        "quantization": args.quantization,
        "async_scheduling": args.ahead,
    }
    with tempfile.TemporaryDirectory() as folder:
        config = plan.make_checkpoint(Path(folder))
        chosen = {name: value for name, value in options.items() if value}
        llm = start(Path(folder), plan, args.eager, **chosen)
        for prompt, batch in product(prompts, args.batches or plan.batches):
            rows = measure_decoding(llm, config, plan.rules, rates, batch, prompt)
            results["decoding"] += rows
            write(results, args.out)  # what there is, should a later one fail
            if args.trace:
                trace(llm, batch, prompt, plan.rules[-1], args.trace)
        for batch in plan.prefill_batches:
            row = measure_prefill(llm, batch, max(prompts), args.repeats)
            results["prefill"].append(row)
    write(results, args.out)
    show(results)


def show(results: dict[str, Any]) -> None:
    """Print the tables of docs/gpu.md."""
    print(
        f"\n{results['device']}: {results['copy_terabytes_per_second']:.3g} TB/s, "
        f"{results['matmul_teraflops']:.3g} TFLOP/s\n"
    )
    columns = (
        "batch",
        "prompt",
        "rule",
        "tok/forward",
        "ms/step",
        "model ms",
        "outside ms",
    )
    columns += ("floor ms", "bound by", "times the floor", "tok/s")
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for row in results["decoding"]:
        print(
            f"| {row['batch']} | {row['prompt']} | {row['rule']} | "
            f"{row['tokens_per_forward']} | "
            f"{row['ms_per_step']:.2f} | {row['model_ms']:.2f} | "
            f"{row['outside_ms']:.2f} | {row['floor_ms']:.2f} | {row['bound']} | "
            f"{row['times_floor']:.2f} | {row['tokens_per_second']:.0f} |"
        )
    print("\n| batch | prompt | prefill tok/s | with a causal mask | time, times |")
    print("|---|---|---|---|---|")
    for row in results["prefill"]:
        print(
            f"| {row['batch']} | {row['prompt']} | {row['tokens_per_second']:.0f} | "
            f"{row['causal_tokens_per_second']:.0f} | {row['times_causal']:.2f} |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--show"]:
        show(json.loads(Path(sys.argv[2]).read_text()))
    else:
        main()
