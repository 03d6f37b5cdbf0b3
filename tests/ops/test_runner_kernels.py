"""The CPU runner kernels do what vLLM's Triton kernels say.

The reference is the text of the Triton kernels themselves, run one program at a time
by the few lines of `Interpreter`; both sides are launched by vLLM's own functions, so
a changed kernel or launch signature in a new vLLM fails here.
"""

import functools
import importlib
import itertools
import os
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from vllm.triton_utils import dispatcher, triton
from vllm.utils.math_utils import next_power_of_2
from vllm.v1.worker.cpu.buffer_utils import UvaBuffer
from vllm.v1.worker.gpu import block_table, buffer_utils, input_batch

from vllm_dllm.ops import extension, runner_kernels
from vllm_dllm.ops.runner_kernels import fallback

BUILT = extension.load() is not None
IMPLEMENTATIONS = [
    pytest.param("native", marks=pytest.mark.skipif(not BUILT, reason="not built")),
    "fallback",
]
MAX_REQS, MAX_LEN, MAX_TOKENS, VOCAB = 24, 96, 600, 77


# --- the reference: Triton's language, as far as these kernels use it ---------------


class Block(np.ndarray):
    """A loaded value; a scalar is zero-dimensional."""

    def to(self, dtype: np.dtype) -> "Block":
        return self.astype(dtype)


class Pointer:
    def __init__(self, memory: np.ndarray, offset: Any = 0) -> None:
        self.memory, self.offset = memory, offset

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.memory, self.offset + np.asarray(offset, np.int64))

    def __sub__(self, offset: Any) -> "Pointer":
        return self + -np.asarray(offset, np.int64)


class Interpreter(types.SimpleNamespace):
    """Stands in for `triton.language`; `tensors` holds what raw addresses mean."""

    constexpr = int64 = int32 = np.int64
    arange, where, range = staticmethod(np.arange), staticmethod(np.where), range
    program: tuple[int, ...]
    grid: tuple[int, ...]

    def program_id(self, axis: int) -> int:
        return self.program[axis]

    def num_programs(self, axis: int) -> int:
        return self.grid[axis]

    def load(self, pointer: Pointer, mask: Any = True, other: int = 0) -> Block:
        mask = np.broadcast_to(mask, np.shape(pointer.offset))
        out = np.full(mask.shape, other, pointer.memory.dtype)
        out[mask] = pointer.memory[np.asarray(pointer.offset)[mask]]
        return out.view(Block)

    def store(self, pointer: Pointer, value: Any, mask: Any = True) -> None:
        mask = np.broadcast_to(mask, np.shape(pointer.offset))
        value = np.broadcast_to(value, mask.shape)
        pointer.memory[np.asarray(pointer.offset)[mask]] = value[mask]

    def pointer_type(self, dtype: Any) -> None:
        return None

    def cast(self, address: Block, _: None) -> Pointer:
        return pointer_to(self.tensors[int(address)])

    def multiple_of(self, pointer: Pointer, _: int) -> Pointer:
        return pointer


def pointer_to(tensor: torch.Tensor) -> Pointer:
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = tensor.as_strided((size - tensor.storage_offset(),), (1,))
    return Pointer(flat.numpy())


class Interpreted:
    """A Triton kernel whose programs run one after the other in Python."""

    def __init__(self, kernel: Any, tensors: dict[int, torch.Tensor]) -> None:
        self.tl = Interpreter(tensors=tensors)
        text = getattr(kernel, "fn", kernel)  # .fn where a real Triton is installed
        scope = text.__globals__ | {"tl": self.tl}
        if "_load_ptr" in scope:
            load_ptr = getattr(buffer_utils._load_ptr, "fn", buffer_utils._load_ptr)
            scope["_load_ptr"] = types.FunctionType(load_ptr.__code__, scope)
        self.run = types.FunctionType(
            text.__code__, scope, text.__name__, text.__defaults__
        )

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        kwargs.pop("num_warps", None)
        self.tl.grid = grid
        args = tuple(
            pointer_to(arg) if isinstance(arg, torch.Tensor) else arg for arg in args
        )
        for self.tl.program in itertools.product(*map(range, grid)):
            self.run(*args, **kwargs)


# --- scenarios: calls of vLLM's functions on random state ---------------------------


class Batch:
    """Random per-request and per-batch state of a runner with `num_reqs` requests."""

    def __init__(self, seed: int, num_reqs: int, tensors: dict[int, torch.Tensor]):
        self.random = np.random.default_rng(seed)
        self.num_reqs, self.tensors = num_reqs, tensors
        self.slots = self.random.permutation(MAX_REQS)[:num_reqs]
        self.idx_mapping = torch.from_numpy(self.slots.astype(np.int64))
        self.query_lens = self.integers(1, 20, num_reqs)
        self.query_start_loc = self.cumulative(self.query_lens)
        self.num_tokens = int(self.query_start_loc[-1])
        self.prefill_lens = self.integers(1, 60, MAX_REQS)
        self.num_computed = self.integers(0, 60, MAX_REQS)
        self.all_token_ids = self.integers(0, VOCAB, MAX_REQS, MAX_LEN)
        starts = self.num_computed[self.idx_mapping].tolist()
        lengths = self.query_lens.tolist()
        self.positions = torch.tensor(
            [i for a, n in zip(starts, lengths, strict=True) for i in range(a, a + n)],
            dtype=torch.int64,
        )

    def integers(
        self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32
    ) -> torch.Tensor:
        return torch.from_numpy(self.random.integers(low, high, shape)).to(dtype)

    @staticmethod
    def cumulative(lens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(lens.cumsum(0), (1, 0)).int()

    def block_tables(self, num_groups: int) -> block_table.BlockTables:
        tables = block_table.BlockTables(
            block_sizes=[4, 32, 3][:num_groups],
            max_num_reqs=MAX_REQS,
            max_num_batched_tokens=MAX_TOKENS,
            max_num_blocks_per_group=[32, 8, 40][:num_groups],
            device=torch.device("cpu"),
            slot_mapping_enabled=[True, False, True][:num_groups],
        )
        for staged in tables.block_tables:
            self.remember(staged.gpu)
        for table in tables.input_block_tables:
            self.remember(table.fill_(-3))
        for slot in range(MAX_REQS):
            for overwrite in (True, False):
                ids = tuple(
                    self.random.integers(1, 999, self.random.integers(0, 5)).tolist()
                    for _ in range(num_groups)
                )
                tables.append_block_ids(slot, ids, overwrite)
        tables.apply_staged_writes()
        return tables

    def remember(self, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors[tensor.data_ptr()] = tensor
        return tensor


def staged_write(batch: Batch, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes: list[Any] = [(MAX_REQS, MAX_LEN), MAX_REQS]
    outputs = [
        buffer_utils.StagedWriteTensor(
            shape, dtype, torch.device("cpu"), uva_instead_of_gpu=uva
        )
        for shape, uva in itertools.product(shapes, (False, True))
    ]
    for slot in batch.slots.tolist():
        for output in outputs:
            if output.gpu.dim() == 1:
                output.stage_write_elem(slot, int(batch.random.integers(999)))
                continue
            start, length = batch.random.integers(0, MAX_LEN // 2, 2)
            tokens = batch.random.integers(0, 1 << 20, length).tolist()
            output.stage_write(slot, start, tokens)
    for output in outputs:
        output.apply_write()
    return [output.gpu for output in outputs]


def block_tables(batch: Batch, num_groups: int) -> list[torch.Tensor]:
    tables = batch.block_tables(num_groups)
    gathered = tables.gather_block_tables(batch.idx_mapping, batch.num_reqs)
    assert all(table.shape[0] == batch.num_reqs for table in gathered)
    return [staged.gpu for staged in tables.block_tables] + tables.input_block_tables


def slot_mappings(
    batch: Batch, num_groups: int, dummies: bool = False
) -> list[torch.Tensor]:
    tables = batch.block_tables(num_groups)
    idx_mapping = batch.idx_mapping.clone()
    if dummies:
        idx_mapping[::2] = -1
    tables.slot_mappings.fill_(-5)
    # The runner's query_start_loc is longer than the batch when it was padded.
    padded = torch.nn.functional.pad(
        batch.query_start_loc, (0, 2), value=batch.num_tokens
    )
    out = tables.compute_slot_mappings(idx_mapping, padded, batch.positions, MAX_TOKENS)
    assert (out[:, batch.num_tokens :] == -1).all()
    return [out]


def prefill_inputs(batch: Batch, num_lookahead: int) -> list[torch.Tensor]:
    input_ids = torch.full((MAX_TOKENS,), -9, dtype=torch.int32)
    lookahead = batch.integers(0, VOCAB, num_lookahead, MAX_REQS)
    input_batch.prepare_prefill_inputs(
        input_ids,
        lookahead,
        batch.idx_mapping,
        batch.query_start_loc,
        batch.all_token_ids,
        batch.prefill_lens,
        batch.num_computed,
    )
    return [input_ids, lookahead]


def pos_seq_lens(batch: Batch) -> list[torch.Tensor]:
    positions = torch.full((MAX_TOKENS,), -9)
    seq_lens = torch.full((MAX_REQS,), -9, dtype=torch.int32)
    input_batch.prepare_pos_seq_lens(
        batch.idx_mapping,
        batch.query_start_loc,
        batch.num_computed,
        positions,
        seq_lens,
    )
    return [positions, seq_lens]


def draft_tokens(batch: Batch, num_new: int) -> list[torch.Tensor]:
    num_logits = [
        int(batch.random.integers(num_new, min(length, 8) + 1))
        for length in batch.query_lens.tolist()
    ]
    cu_num_logits = batch.cumulative(torch.tensor(num_logits, dtype=torch.int32))
    input_ids = torch.full((MAX_TOKENS,), -9, dtype=torch.int32)
    seq_lens = batch.num_computed[batch.idx_mapping] + batch.query_lens
    # Rows of a wider tensor, so that the row stride is not the row length.
    wide = batch.integers(-1, VOCAB, MAX_REQS, 12, dtype=torch.int64)
    logits_indices = input_batch.combine_sampled_and_draft_tokens(
        input_ids,
        batch.idx_mapping,
        batch.integers(0, VOCAB, MAX_REQS, 1, dtype=torch.int64),
        batch.query_start_loc,
        seq_lens,
        batch.prefill_lens,
        wide[:, :8],
        cu_num_logits,
        sum(num_logits),
        num_new,
    )
    expanded = input_batch.expand_idx_mapping(
        batch.idx_mapping, sum(num_logits), cu_num_logits, 8
    )
    return [input_ids, logits_indices, *expanded]


def update(
    batch: Batch,
    counted: bool,
    pipeline: bool = False,
    sampled: torch.dtype = torch.int64,
) -> list[torch.Tensor]:
    idx_mapping = batch.idx_mapping.clone()
    if pipeline:
        idx_mapping[1::2] = -1  # freed while the tokens were on their way
    state = [
        batch.num_computed,
        batch.integers(0, VOCAB, MAX_REQS, 1, dtype=torch.int64),
        batch.all_token_ids,
        batch.integers(1, 60, MAX_REQS),
    ]
    num_computed, last_sampled, all_token_ids, total_lens = state
    counts = batch.integers(0, 3, MAX_REQS, VOCAB) if counted else None
    tokens = batch.integers(0, VOCAB, batch.num_reqs, 11, dtype=sampled)[:, :9]
    small = torch.int32 if sampled == torch.int64 else torch.int64
    input_batch.post_update(
        idx_mapping,
        num_computed,
        last_sampled,
        counts,
        tokens,
        batch.integers(0, 10, batch.num_reqs, dtype=small),
        batch.integers(0, 40, batch.num_reqs, dtype=small),
        None if pipeline else batch.query_start_loc,
        all_token_ids,
        total_lens,
    )
    return state if counts is None else [*state, counts]


def update_num_computed(batch: Batch) -> list[torch.Tensor]:
    input_batch.post_update_num_computed_tokens(
        batch.idx_mapping, batch.num_computed, batch.query_start_loc
    )
    return [batch.num_computed]


Scenario = Callable[[Batch], list[torch.Tensor]]
SCENARIOS: dict[str, Scenario] = {
    "staged writes, int32": functools.partial(staged_write, dtype=torch.int32),
    "staged writes, int64": functools.partial(staged_write, dtype=torch.int64),
    "staged writes, float32": functools.partial(staged_write, dtype=torch.float32),
    "block tables, one group": functools.partial(block_tables, num_groups=1),
    "block tables, three groups": functools.partial(block_tables, num_groups=3),
    "slots, one group": functools.partial(slot_mappings, num_groups=1),
    "slots, three groups": functools.partial(slot_mappings, num_groups=3),
    "slots, dummies": functools.partial(slot_mappings, num_groups=2, dummies=True),
    "prefill, lookahead 1": functools.partial(prefill_inputs, num_lookahead=1),
    "prefill, lookahead 3": functools.partial(prefill_inputs, num_lookahead=3),
    "positions": pos_seq_lens,
    "drafts, no bonus token": functools.partial(draft_tokens, num_new=0),
    "drafts, bonus token": functools.partial(draft_tokens, num_new=1),
    "post update": functools.partial(update, counted=False),
    "post update, counted": functools.partial(update, counted=True),
    "post update, pipeline": functools.partial(update, counted=True, pipeline=True),
    "post update, int32": functools.partial(update, counted=True, sampled=torch.int32),
    "num computed": update_num_computed,
}

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


# --- tests ---------------------------------------------------------------------------


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
