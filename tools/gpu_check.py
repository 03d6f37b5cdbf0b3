"""Whether an accelerator gives the golden tokens: every model, backend and mode.

    python tools/gpu_check.py
    python tools/gpu_check.py --models sdar16 llada --backends TRITON_ATTN --modes eager

Golden checkpoints (tests/golden) in float32, each case alone and all in one batch: the
tokens and no more forwards than the authors' code; several blocks in flight and soft
tokens where there are such cases; with full attention also guided requests and
infillings, against tests/reference. The bundled model in bfloat16, where
tokens may differ: its exact answers to held-out questions. Runs on whatever vLLM's
platform is, a CPU too. One process for each engine. Ends with a table, and with exit
code 1 if anything differs.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.engines import Engine

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

SEVERAL_BLOCKS = ("sdar4", "sdar16", "llada8", "llada32", "editing8", "editing32")
"""Engines with cases of several blocks in flight."""
SOFT = ("dmax8", "dmax32")
GUIDED = ("llada", "dream")
BUNDLED = "tiny-llada2"
MODELS = (
    *SEVERAL_BLOCKS,
    *GUIDED,
    BUNDLED,
    *SOFT,
    *("fastdllm2", "moving8", "moving32", "nemotron", "wedlm", "diffullama"),
    *("adablock-llada", "adablock-dream"),
)
BACKENDS = {
    "cpu": {"float32": ["CPU_ATTN"], "bfloat16": ["CPU_ATTN"]},
    "cuda": {
        "float32": ["TRITON_ATTN"],  # the others are for half precision
        "bfloat16": ["FLASH_ATTN", "TRITON_ATTN", "FLASHINFER"],
    },
}
MODES = {"cpu": ["eager"], "cuda": ["eager", "graphs"]}
"""`graphs`: torch.compile and CUDA graphs, with vLLM's defaults."""
AHEAD = "ahead"
"""On request: as `graphs`, and steps are planned ahead (`--async-scheduling`)."""
QUESTIONS = 20
"""Of each skill of the bundled model."""
EXACT = 0.97
"""Share of right answers that is asked of it; 0.99 were measured on CPU."""
MARK = "RESULT "
"""Begins the line that a process answers with."""


@dataclass(frozen=True)
class Check:
    model: str
    dtype: str
    backend: str
    mode: str
    every: int = 1
    """Each so-manieth case is asked alone; all are in one batch."""


@dataclass
class Outcome:
    cases: int = 0
    same: int = 0
    forwards: int = 0
    seconds: float = 0.0
    """Without the start of the engine."""
    passed: bool = False
    problems: list[str] | tuple[str, ...] = ()


def checks(
    platform: str,
    models: list[str],
    backends: list[str],
    modes: list[str],
    every: int = 1,
) -> list[Check]:
    """What the options ask for; empty lists for all that the platform has."""
    found = []
    for model in models or MODELS:
        dtype = "bfloat16" if model == BUNDLED else "float32"
        for backend in BACKENDS[platform][dtype]:
            if backend == "FLASHINFER" and find_spec("flashinfer") is None:
                continue
            if backends and backend not in backends:
                continue
            for mode in modes or MODES[platform]:
                found.append(Check(model, dtype, backend, mode, every))
    return found


def engine_options(check: Check, platform: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dtype": check.dtype,
        "attention_backend": check.backend,
        "enforce_eager": check.mode == "eager",
        "async_scheduling": check.mode == AHEAD,
    }
    if platform == "cuda":  # small models: several engines share the memory
        options["gpu_memory_utilization"] = 0.1
        options["kv_cache_memory_bytes"] = 1 << 30
    return options


def cases_of(engine: "Engine", model: str) -> list[Any]:
    """Requests of its checkpoint with their answers."""
    from tests.dmax_cases import soft_cases
    from tests.full_attention import guided_cases, infilling_cases
    from tests.golden_cases import golden_cases
    from tests.multi_block_cases import multi_block_cases

    asked = (engine.spec.checkpoint, engine.spec.block)
    if model in SOFT:
        return list(soft_cases(*asked))
    cases: list[Any] = golden_cases(*asked)
    if model in SEVERAL_BLOCKS:
        cases += multi_block_cases(*asked)
    if model in GUIDED:
        more = guided_cases(engine) + infilling_cases(engine)
        cases += [case.answered() for case in more]
    return cases


def check_golden(check: Check, platform: str) -> Outcome:
    """Alone and in one batch, as tests/test_golden.py does."""
    from tests.engines import Engine, tokens_of
    from tests.golden_cases import Case, differences, too_many_forwards
    from tests.specs import OFFLINE, EngineSpec

    spec = OFFLINE[check.model]
    options = engine_options(check, platform)
    if "hf_overrides" in spec.options:
        options["hf_overrides"] = spec.options["hf_overrides"]
    # What is compiled for token ids takes no embeddings.
    dllm = {"soft_tokens": True} if check.model in SOFT else {}
    engine = Engine(EngineSpec(spec.checkpoint, spec.block, options, dllm))
    cases = cases_of(engine, check.model)
    outcome, problems, start = Outcome(), [], time.perf_counter()
    for batch in (*[[case] for case in cases[:: check.every]], cases):
        engine.forget_prefixes()
        # Some cases of several blocks end with a stop token.
        requests = [(case, getattr(case, "sampling", {})) for case in batch]
        outputs = engine.ask_each(requests)
        different = differences(batch, [tokens_of(o) for o in outputs])
        forwards = [engine.forwards(output) for output in outputs]
        outcome.cases += len(batch)
        outcome.same += len(batch) - len(different)
        outcome.forwards += sum(forwards)
        problems += different
        for case, count in zip(batch, forwards, strict=True):
            if isinstance(case, Case):  # others count in another way
                problems += too_many_forwards([case], [count])
    outcome.seconds = time.perf_counter() - start
    outcome.problems, outcome.passed = problems, not problems
    engine.close()
    return outcome


def check_bundled(check: Check, platform: str) -> Outcome:
    """Held-out questions, all in one batch."""
    from vllm import SamplingParams

    from tests.engines import Engine, tokens_of
    from tests.specs import EngineSpec
    from tools.tiny import skills

    options = engine_options(check, platform)
    engine = Engine(EngineSpec(str(REPO / "models" / BUNDLED), None, options))
    examples = [
        example
        for skill in skills.SKILLS
        for example in skills.held_out_examples(skill, QUESTIONS, seed=0)
    ]
    start = time.perf_counter()
    outputs = engine.llm.chat(
        [[{"role": "user", "content": example.question}] for example in examples],
        SamplingParams(temperature=0, max_tokens=64),
        use_tqdm=False,
    )
    seconds = time.perf_counter() - start
    assert all(map(tokens_of, outputs))
    wrong = [
        f"{example.question!r}: {output.outputs[0].text!r}, not {example.answer!r}"
        for example, output in zip(examples, outputs, strict=True)
        if output.outputs[0].text != example.answer
    ]
    same = len(examples) - len(wrong)
    forwards = sum(map(engine.forwards, outputs))
    engine.close()
    enough = same >= EXACT * len(examples)
    return Outcome(len(examples), same, forwards, seconds, enough, wrong)


def prepare_environment() -> None:
    """Of the processes to come."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # To count forwards in the workers.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    # Triton's own default rounds float32 factors to ten bits of mantissa.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")


def run_here(check: Check, log: Path) -> None:
    """Start the engine in this process; the outcome is the last line of the log."""
    from vllm.platforms import current_platform

    from tests.forked import send_output_to

    send_output_to(log)
    run = check_bundled if check.model == BUNDLED else check_golden
    outcome = run(check, current_platform.device_type)
    print(f"\n{MARK}{json.dumps(asdict(outcome))}", flush=True)


def run_apart(check: Check, logs: Path) -> Outcome:
    """The same in a process of its own."""
    from tests.forked import Forked

    name = f"{check.model}-{check.dtype}-{check.backend}-{check.mode}"
    log = logs / f"{name}.log"
    process = Forked(target=run_here, args=(check, log))
    process.start()
    process.join()
    said = log.read_text().splitlines() if log.exists() else []
    lines = [line for line in said if line.startswith(MARK)]
    if lines:
        outcome = Outcome(**json.loads(lines[-1].removeprefix(MARK)))
    else:
        outcome = Outcome(problems=["no answer:", *said[-40:]])
    print(f"{row(check, outcome)}", flush=True)
    return outcome


def row(check: Check, outcome: Outcome) -> str:
    return (
        f"{check.model:12} {check.dtype:9} {check.backend:12} {check.mode:7} "
        f"{outcome.cases:6} {outcome.same:6} {outcome.forwards:9} "
        f"{outcome.seconds:8.1f}  {'ok' if outcome.passed else 'DIFFERS'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[])
    parser.add_argument("--backends", nargs="+", default=[])
    modes = [*MODES["cuda"], AHEAD]
    parser.add_argument("--modes", nargs="+", choices=modes, default=[])
    parser.add_argument(
        "--every", type=int, default=1, help="ask each so-manieth case alone"
    )
    parser.add_argument("--jobs", type=int, default=1, help="engines at the same time")
    parser.add_argument("--out", type=Path, help="all outcomes, as JSON")
    args = parser.parse_args()
    prepare_environment()
    from vllm.platforms import current_platform

    platform = current_platform.device_type
    wanted = checks(platform, args.models, args.backends, args.modes, args.every)
    if not wanted:
        parser.error(f"no such check on {platform}; backends: {BACKENDS[platform]}")
    with TemporaryDirectory() as logs, ThreadPoolExecutor(args.jobs) as pool:
        outcomes = list(pool.map(partial(run_apart, logs=Path(logs)), wanted))
    failed = [pair for pair in zip(wanted, outcomes, strict=True) if not pair[1].passed]
    for check, outcome in failed:
        print(f"\n{check}", *outcome.problems, sep="\n  ")
    print(
        f"\n{'model':12} {'dtype':9} {'backend':12} {'mode':7} {'cases':>6} "
        f"{'same':>6} {'forwards':>9} {'seconds':>8}"
    )
    for check, outcome in zip(wanted, outcomes, strict=True):
        print(row(check, outcome))
    if args.out:
        pairs = zip(wanted, outcomes, strict=True)
        table = [asdict(check) | asdict(outcome) for check, outcome in pairs]
        args.out.write_text(json.dumps(table, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
