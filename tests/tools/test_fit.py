"""What is said of memory without an engine is what an engine takes."""

import json
import math
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from vllm import SamplingParams

from tests.engines import Engine, uses
from tests.golden_cases import GOLDEN
from tests.specs import COMMON, OFFLINE
from tests.watchdog import watched
from tools.fit import Fit, bytes_of, verdict
from tools.footprint import Footprint

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]
ENGINES = ("sdar4", "llada32", "dream")
SOME = Footprint(
    architecture="SomeModel",
    dtype="bfloat16",
    parameters=10,
    kept=2000,
    quantizable=8000,
    itemsize=2,
    page=100,
    page_size=16,
    longest=64,
    kv_heads=4,
    logits=300,
    activations=100,
)


@pytest.fixture(scope="module")
def footprints() -> dict[str, Footprint]:
    """Of the checkpoints of `ENGINES`, in a process without an engine."""
    options = {name: COMMON[name] for name in ("dtype", "max_model_len")}
    folders = [str(GOLDEN / OFFLINE[name].checkpoint) for name in ENGINES]
    command = [sys.executable, "-m", "tools.footprint", *folders]
    command += ["--options", json.dumps(options)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    found = [Footprint(**json.loads(line)) for line in lines]
    return dict(zip(ENGINES, found, strict=True))


def stored_sizes(folder: Path) -> Iterator[int]:
    """The elements of every tensor of a checkpoint."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield math.prod(file.get_slice(name).get_shape())


def pages_taken(worker: Any) -> int:
    """Bytes of the KV cache of a worker."""
    return sum(cache.nbytes for cache in worker.model_runner.kv_caches)


@uses(*ENGINES)
def test_a_footprint_is_what_an_engine_takes(
    engine: Engine, footprints: dict[str, Footprint]
) -> None:
    """A server would not start where this says that it fits."""
    [name] = [name for name in ENGINES if OFFLINE[name] == engine.spec]
    said = footprints[name]
    config = engine.llm.llm_engine.vllm_config
    # vLLM packs weights for a CPU out of sight; as many as the checkpoint has.
    stored = sum(stored_sizes(GOLDEN / engine.spec.checkpoint))
    assert said.parameters == pytest.approx(stored, rel=0.05)
    assert said.weights() == 4 * said.parameters
    assert said.page_size == config.cache_config.block_size
    [taken] = engine.llm.collective_rpc(pages_taken)
    pages = config.cache_config.num_gpu_blocks
    assert taken == pytest.approx(pages * said.page, rel=0.05)
    # As many requests at a time as vLLM itself says of the same memory.
    room = taken + (said.weights() + said.logits + said.activations)
    fit = Fit(said, math.ceil((room + said.page) / 0.92))
    assert fit.pages == pytest.approx(pages, rel=0.05)


@uses(*ENGINES)
def test_the_longest_request_takes_the_pages_that_are_said(
    engine: Engine, footprints: dict[str, Footprint]
) -> None:
    """A canvas may end behind the last token, and pages with it."""
    [name] = [name for name in ENGINES if OFFLINE[name] == engine.spec]
    said, core = footprints[name], engine.llm.llm_engine
    pool = core.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
    engine.forget_prefixes()
    free = least = pool.get_num_free_blocks()
    prompt = {"prompt_token_ids": [5] * (COMMON["max_model_len"] - 24)}
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    core.add_request(f"longest-{name}", prompt, params)
    with watched(core):
        while core.has_unfinished_requests():
            core.step()
            least = min(least, pool.get_num_free_blocks())
    assert free - least == said.pages_of(said.longest)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("24 gb", 24 * 10**9), ("1.5GiB", 3 * 2**29), ("7", 7)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    """24 GB are no 24 GiB."""
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "24 apples", "-1GiB", "1..5GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """It would be taken for another one."""
    with pytest.raises(ArgumentTypeError, match="is no size"):
        bytes_of(text)


def test_a_quantized_weight_is_a_share_of_itself() -> None:
    """Embeddings would be counted as quantized, which they are not."""
    assert SOME.weights() == 10_000
    assert SOME.weights("fp8") == 2000 + 4000
    assert SOME.weights("int4") == 2000 + 2062
    assert SOME.kv_per_request == 400


@pytest.mark.parametrize(
    ("memory", "requests", "said"),
    [
        (20_000, 19, "It fits: 19 requests"),
        (12_200, 1, "It fits, with 1 requests of that length at a time and not 16"),
        (11_700, 0, "--max-model-len 32 or less"),
        (9_000, 0, "weights in fp8 (0.0 MiB): 4 requests"),
        (9_000, 0, "--tensor-parallel-size 2: "),
        (500, 0, "It does not fit."),
        (500, 0, "take a device with more memory"),
    ],
)
def test_what_does_not_fit_is_told_what_would(
    memory: int, requests: int, said: str
) -> None:
    """Whoever reads "no" wants to know what to turn down."""
    fit = Fit(SOME, memory)
    assert fit.requests == requests
    lines = verdict(fit, 16)
    assert any(said in line for line in lines), lines


def test_a_released_name_is_enough() -> None:
    """Who chooses a machine has no weights yet."""
    command = [sys.executable, "tools/fit.py", "inclusionAI/LLaDA2.0-mini"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "16,256 million parameters" in result.stdout
    assert "40,960 bytes a token" in result.stdout
    assert "It does not fit. What would:" in result.stdout
