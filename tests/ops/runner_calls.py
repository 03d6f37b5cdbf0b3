"""Calls of vLLM's functions that launch the runner's kernels, on random state."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu import block_table, buffer_utils, input_batch

MAX_REQS, MAX_LEN, MAX_TOKENS, VOCAB = 24, 96, 600, 77


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
