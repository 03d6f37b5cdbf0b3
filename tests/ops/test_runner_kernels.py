"""The CPU runner kernels do what vLLM's Triton kernels say.

The reference is the text of the Triton kernels themselves (`triton_text.py`). Both
sides are launched by vLLM's own functions (`runner_calls.py`), so a changed kernel or
launch signature in a new vLLM fails here.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from vllm.triton_utils import dispatcher, triton
from vllm.utils.math_utils import next_power_of_2
from vllm.v1.worker.cpu.buffer_utils import UvaBuffer
from vllm.v1.worker.gpu import buffer_utils

from tests.ops.runner_calls import MAX_REQS, SCENARIOS, Batch, Scenario
from tests.ops.triton_text import Interpreted
from vllm_dllm.ops import extension, runner_kernels
from vllm_dllm.ops.runner_kernels import fallback

BUILT = extension.load() is not None
IMPLEMENTATIONS = [
    pytest.param("native", marks=pytest.mark.skipif(not BUILT, reason="not built")),
    "fallback",
]

Launch = Callable[[str, Scenario, int, int], list[torch.Tensor]]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Runs a scenario with all kernels "native", "fallback" or "triton" (the text)."""
    monkeypatch.setattr(buffer_utils, "UvaBuffer", UvaBuffer)
    if not hasattr(triton, "next_power_of_2"):
        monkeypatch.setattr(triton, "next_power_of_2", next_power_of_2, raising=False)

    def run(
        implementation: str, scenario: Scenario, seed: int, num_reqs: int
    ) -> list[torch.Tensor]:
        tensors: dict[int, torch.Tensor] = {}
        for name, kernel in ORIGINALS.items():
            owner, _, attribute = name.rpartition(".")
            replacement: Any = Interpreted(kernel, tensors)
            if implementation != "triton":
                replacement = dispatcher.KernelOverride(
                    kernel, kernels(implementation)[name]
                )
            monkeypatch.setattr(importlib.import_module(owner), attribute, replacement)
        return scenario(Batch(seed, num_reqs, tensors))

    return run


def kernels(implementation: str) -> dict[str, Callable[..., Any]]:
    module = importlib.import_module(f"{runner_kernels.__name__}.{implementation}")
    return runner_kernels.kernels_of(module)


def _original(name: str) -> Any:
    """vLLM's own kernel, also when ours has been registered in this process."""
    if name in dispatcher._registry:
        return dispatcher._registry[name][0]
    owner, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(owner), attribute)


ORIGINALS = {name: _original(name) for name in runner_kernels.KERNELS}


def assert_equal(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("num_reqs", [0, 1, 2, 7, MAX_REQS])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_does_what_the_triton_kernel_says(
    launch: Launch, implementation: str, scenario: str, num_reqs: int
) -> None:
    """One wrong position, slot or count corrupts a request without any error."""
    for seed in range(3):
        arguments = SCENARIOS[scenario], seed, num_reqs
        assert_equal(launch(implementation, *arguments), launch("triton", *arguments))


def address(tensor: torch.Tensor) -> torch.Tensor:
    return torch.tensor([tensor.data_ptr()], dtype=torch.uint64)


@pytest.mark.skipif(not BUILT, reason="not built")
def test_batches_large_enough_for_openmp_agree() -> None:
    """The parallel loops run only past sizes no other test reaches."""
    native = importlib.import_module("vllm_dllm.ops.runner_kernels.native")
    random = torch.Generator().manual_seed(0)
    num_reqs, width, length = 300, 1100, 150
    table = torch.randint(1, 9999, (num_reqs, width), generator=random).int()
    slots = torch.randperm(num_reqs, generator=random)
    num_blocks = torch.randint(0, width, (1, num_reqs), generator=random).int()
    starts = torch.arange(num_reqs + 1, dtype=torch.int32) * length
    positions = torch.randint(0, 16 * width, (num_reqs * length,), generator=random)

    results = []
    for module in (native, fallback):
        rows = torch.zeros_like(table)
        module.gather_block_tables(
            slots,
            address(table),
            address(rows),
            torch.tensor([width]),
            num_blocks,
            num_reqs,
            num_reqs,
        )
        mapped = torch.zeros(1, num_reqs * length + 9, dtype=torch.int64)
        module.compute_slot_mappings(
            mapped.shape[1],
            slots,
            starts,
            positions,
            address(table),
            torch.tensor([width]),
            torch.tensor([16], dtype=torch.int32),
            torch.tensor([True]),
            torch.tensor([True]),
            mapped,
            mapped.stride(0),
            0,
            CP_SIZE=1,
            PAD_ID=-1,
        )
        results.append([rows, mapped])
    assert_equal(*results)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_request_never_leaves_its_row(implementation: str) -> None:
    """A block that crosses max_model_len must not spill into the next request."""
    module = importlib.import_module(f"{runner_kernels.__name__}.{implementation}")
    slot = torch.tensor([0])
    all_token_ids = torch.zeros(2, 8, dtype=torch.int32)
    total_lens = torch.tensor([6, 1], dtype=torch.int32)
    last_sampled = torch.zeros(2, 1, dtype=torch.int64)
    none = torch.tensor([0], dtype=torch.int32)
    module.post_update(
        slot,
        torch.zeros(2, dtype=torch.int32),
        last_sampled,
        None,
        0,
        torch.tensor([[1, 2, 3, 4]]),
        4,
        torch.tensor([4], dtype=torch.int32),
        none,
        None,
        all_token_ids,
        8,
        total_lens,
        num_warps=1,
    )
    assert all_token_ids.tolist() == [[0] * 6 + [1, 2], [0] * 8]
    assert total_lens.tolist() == [10, 1]
    assert last_sampled.tolist() == [[4], [0]]

    input_ids = torch.full((6,), -1, dtype=torch.int32)
    module.prepare_prefill_inputs(
        input_ids,
        torch.zeros(1, 2, dtype=torch.int32),
        2,
        1,
        slot,
        torch.tensor([0, 4], dtype=torch.int32),
        all_token_ids,
        8,
        torch.tensor([8, 0], dtype=torch.int32),
        torch.tensor([6, 0], dtype=torch.int32),
    )
    assert input_ids.tolist() == [1, 2, -1, -1, -1, -1]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_vllm_033_adds_is_passed_over(implementation: str) -> None:
    """Its kernels are given more, by position: a TypeError in the first step."""
    module = importlib.import_module(f"{runner_kernels.__name__}.{implementation}")
    slot, one = torch.tensor([1]), torch.tensor([1], dtype=torch.int32)
    table = torch.arange(1, 9, dtype=torch.int32).view(2, 4)
    rows = torch.zeros_like(table)
    module.gather_block_tables(
        slot,
        address(table),
        address(rows),
        torch.tensor([4]),
        torch.tensor([[0, 3]], dtype=torch.int32),
        2,
        1,
        *(None, None, torch.tensor([4])),
        BLOCK_SIZE=1024,
        MASK_SLIDING_WINDOW=False,
    )
    assert rows.tolist() == [[5, 6, 7, 0], [0] * 4]

    total_lens = torch.tensor([6, 1], dtype=torch.int32)
    module.post_update(
        slot,
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(2, 1, dtype=torch.int64),
        None,
        0,
        torch.tensor([[3]]),
        1,
        one,
        torch.zeros_like(one),
        None,
        table,
        4,
        total_lens,
        *(None, None, 0),
        num_warps=1,
    )
    assert total_lens.tolist() == [6, 2]
    assert table.tolist() == [[1, 2, 3, 4], [5, 3, 7, 8]]


def test_the_extension_is_built() -> None:
    """Otherwise every native test above is skipped and nobody notices."""
    if os.environ.get("DLLM_SKIP_NATIVE") == "1":
        pytest.skip("built without it on purpose")
    assert BUILT


@pytest.mark.skipif(not BUILT, reason="no native extension")
def test_an_extension_of_another_version_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that was built before an update would lack what the first step calls."""
    monkeypatch.setattr(extension, "VERSION", extension.VERSION + 1)
    extension.load.cache_clear()
    try:
        assert extension.load() is None
    finally:
        extension.load.cache_clear()


def test_the_environment_can_refuse_the_extension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """VLLM_DLLM_NATIVE=0 is how a user rules the extension out."""
    monkeypatch.setenv("VLLM_DLLM_NATIVE", "0")
    extension.load.cache_clear()
    try:
        assert runner_kernels._load() is fallback
    finally:
        extension.load.cache_clear()


def test_registering_routes_vllm_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names in KERNELS are the ones vLLM's dispatcher resolves."""
    for name in ORIGINALS:
        owner, _, attribute = name.rpartition(".")
        module = importlib.import_module(owner)
        monkeypatch.setattr(module, attribute, ORIGINALS[name])
    monkeypatch.setattr(dispatcher, "_registry", {})
    dispatcher.register_kernels(runner_kernels.KERNELS)
    for name, implementation in runner_kernels.KERNELS.items():
        owner, _, attribute = name.rpartition(".")
        kernel = getattr(importlib.import_module(owner), attribute)
        assert kernel._impl is implementation
