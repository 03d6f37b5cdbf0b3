"""Rows of attention against a dense mask: a query sees its block and those before."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_dllm.worker.attention import AttentionRows, block_causal_rows


def fake_batch(spans: list[tuple[int, int]], padding: int = 0) -> Any:
    """Spans as (first position, number of tokens), then unused entries."""
    lengths = [length for _, length in spans] + [0] * padding
    ends = [start + length for start, length in spans] + [9999] * padding
    return SimpleNamespace(
        num_scheduled_tokens=np.array(lengths, dtype=np.int32),
        seq_lens=torch.tensor(ends, dtype=torch.int32),
        query_start_loc_np=np.cumsum([0, *lengths], dtype=np.int32),
    )


def seen_by_rows(rows: AttentionRows, num_tokens: int, width: int) -> torch.Tensor:
    """[num_tokens, num_reqs * width] bool, as a backend without a causal mask sees."""
    mask = torch.zeros(num_tokens, (int(rows.owner.max()) + 1) * width).bool()
    starts = rows.query_start.tolist()
    for row, (owner, keys) in enumerate(
        zip(rows.owner.tolist(), rows.seq_lens.tolist(), strict=True)
    ):
        assert starts[row + 1] - starts[row] <= rows.max_query_len
        mask[starts[row] : starts[row + 1], owner * width : owner * width + keys] = True
    return mask


def seen_by_definition(
    spans: list[tuple[int, int]], block: int, width: int
) -> torch.Tensor:
    queries = [
        (request, position)
        for request, (start, length) in enumerate(spans)
        for position in range(start, start + length)
    ]
    mask = torch.zeros(len(queries), len(spans) * width).bool()
    for query, (request, position) in enumerate(queries):
        for key in range((position // block + 1) * block):
            mask[query, request * width + key] = True
    return mask


def check(spans: list[tuple[int, int]], block: int, padding: int = 0) -> AttentionRows:
    rows = block_causal_rows(fake_batch(spans, padding), len(spans), block)
    num_tokens = sum(length for _, length in spans)
    width = max(start + length for start, length in spans)
    assert torch.equal(
        seen_by_rows(rows, num_tokens, width), seen_by_definition(spans, block, width)
    )
    return rows


@pytest.mark.parametrize("block", [1, 2, 3, 4, 16, 32])
@pytest.mark.parametrize("seed", range(6))
def test_every_query_sees_its_block_and_all_before_it(block: int, seed: int) -> None:
    """A key more or less, of any request, gives other tokens than the authors'."""
    rng = random.Random(seed)
    spans = [
        (rng.randrange(5) * block, rng.randint(1, 5) * block)
        for _ in range(rng.randint(1, 6))
    ]
    check(spans, block)


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 4)],
        [(40, 4)],
        [(40, 8)],
        [(0, 400)],
        [(0, 400), (12, 4), (4, 8), (0, 4)],
    ],
)
def test_a_row_is_a_block_of_one_request(spans: list[tuple[int, int]]) -> None:
    """A row over two requests would read the keys of one of them for both."""
    rows = check(spans, block=4)
    owner = [i for i, (_, length) in enumerate(spans) for _ in range(length // 4)]
    assert rows.owner.tolist() == owner
    assert rows.query_start.tolist() == list(range(0, 4 * len(owner) + 1, 4))
    assert rows.max_query_len == 4


def test_backends_get_the_types_that_they_read() -> None:
    """A kernel reads int64 lengths as twice as many int32 ones."""
    rows = check([(8, 8), (0, 4)], block=4)
    assert rows.owner.dtype == torch.int64
    assert rows.query_start.dtype == rows.seq_lens.dtype == torch.int32
    assert rows.query_start.device.type == "cpu"


@pytest.mark.parametrize("padding", [1, 7])
def test_entries_behind_the_batch_are_not_read(padding: int) -> None:
    """The arrays are as long as the largest batch, and hold what was there before."""
    spans = [(8, 8), (0, 4), (16, 4)]
    padded, alone = check(spans, 4, padding), check(spans, 4)
    assert torch.equal(padded.owner, alone.owner)
    assert torch.equal(padded.seq_lens, alone.seq_lens)
    batch = fake_batch([*spans, (0, 3)])
    assert len(block_causal_rows(batch, 3, 4).owner) == len(alone.owner)


def test_a_dummy_batch_has_one_row_per_request() -> None:
    """Profiling runs spans of any length, which no whole number of blocks covers."""
    spans = [(0, 5), (0, 4), (0, 3)]
    rows = block_causal_rows(fake_batch(spans, padding=2), 3, 4)
    assert rows.owner.tolist() == [0, 1, 2]
    assert rows.query_start.tolist() == [0, 5, 9, 12]
    assert rows.query_start.dtype == torch.int32
    assert rows.seq_lens.tolist() == [5, 4, 3]
    assert rows.max_query_len == 5


def test_the_batch_is_left_as_it_was() -> None:
    """vLLM goes on with the same arrays."""
    spans = [(8, 8), (0, 4)]
    batch, same = fake_batch(spans), fake_batch(spans)
    rows = block_causal_rows(batch, 2, 4)
    rows.seq_lens += 1
    rows.query_start += 1
    assert torch.equal(batch.seq_lens, same.seq_lens)
    assert (batch.num_scheduled_tokens == same.num_scheduled_tokens).all()
    assert (batch.query_start_loc_np == same.query_start_loc_np).all()
