"""Rows of attention against a dense mask: a query sees its block and those before.

With full attention: the pages of its whole sequence, and of its own branch alone.
"""

import random
from dataclasses import dataclass
from math import ceil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm_dllm.worker.attention import (
    AttentionRows,
    block_causal_rows,
    guided_rows,
    max_rows,
    whole_rows,
)


def fake_batch(spans: list[tuple[int, int]], padding: int = 0) -> Any:
    """Spans as (first position, number of tokens), then unused entries."""
    lengths = [length for _, length in spans] + [0] * padding
    ends = [start + length for start, length in spans] + [9999] * padding
    query_start = np.cumsum([0, *lengths], dtype=np.int32)
    return SimpleNamespace(
        num_scheduled_tokens=np.array(lengths, dtype=np.int32),
        seq_lens=torch.tensor(ends, dtype=torch.int32),
        query_start_loc_np=query_start,
        query_start_loc=torch.from_numpy(query_start.copy()),
    )


def owners(rows: AttentionRows) -> list[int]:
    """The request of each row."""
    if rows.owner is None:
        return list(range(rows.num_rows))
    return rows.owner.tolist()


def seen_by_rows(rows: AttentionRows, num_tokens: int, width: int) -> torch.Tensor:
    """[num_tokens, num_reqs * width] bool, as a backend without a causal mask sees."""
    mask = torch.zeros(num_tokens, (max(owners(rows)) + 1) * width).bool()
    starts = rows.query_start.tolist()
    assert rows.query_start_device.tolist() == starts
    for row, (owner, keys) in enumerate(
        zip(owners(rows), rows.seq_lens.tolist(), strict=True)
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
    assert owners(rows) == owner
    table = torch.arange(6 * len(spans)).view(len(spans), 6)
    assert torch.equal(rows.block_table(table), table[owner])
    assert rows.query_start.tolist() == list(range(0, 4 * len(owner) + 1, 4))
    assert rows.max_query_len == 4


def test_backends_get_the_types_that_they_read() -> None:
    """A kernel reads int64 lengths as twice as many int32 ones."""
    rows = check([(8, 8), (0, 4)], block=4)
    assert rows.owner is not None and rows.owner.dtype == torch.int64
    assert rows.query_start.dtype == rows.seq_lens.dtype == torch.int32
    assert rows.query_start_device.dtype == torch.int32
    assert rows.query_start.device.type == "cpu"


@pytest.mark.parametrize("padding", [1, 7])
def test_entries_behind_the_batch_are_not_read(padding: int) -> None:
    """The arrays are as long as the largest batch, and hold what was there before."""
    spans = [(8, 8), (0, 4), (16, 4)]
    padded, alone = check(spans, 4, padding), check(spans, 4)
    assert owners(padded) == owners(alone)
    assert torch.equal(padded.seq_lens, alone.seq_lens)
    batch = fake_batch([*spans, (0, 3)])
    assert owners(block_causal_rows(batch, 3, 4)) == owners(alone)


@pytest.mark.parametrize("padding", [0, 3])
def test_a_cuda_graph_finds_a_block_of_each_request_where_it_was(padding: int) -> None:
    """A replay reads the addresses of the capture. Tensors made for the step would be
    freed by then, and the answers those of another step."""
    spans = [(8, 4), (0, 4), (16, 4)]
    batch = fake_batch(spans, padding)
    # The graph's batch is padded; this one array is not.
    batch.num_scheduled_tokens = batch.num_scheduled_tokens[: len(spans)]
    rows = block_causal_rows(batch, len(spans) + padding, 4)
    table = torch.arange(60).view(-1, 10)
    assert rows.num_rows == len(spans) + padding
    for found, persistent in (
        (rows.query_start_device, batch.query_start_loc),
        (rows.seq_lens, batch.seq_lens),
        (rows.block_table(table), table),
    ):
        assert found.data_ptr() == persistent.data_ptr()
    assert rows.max_query_len == 4


def test_a_dummy_batch_has_one_row_per_request() -> None:
    """Profiling runs spans of any length, which no whole number of blocks covers."""
    spans = [(0, 5), (0, 4), (0, 3)]
    rows = block_causal_rows(fake_batch(spans, padding=2), 3, 4)
    assert owners(rows) == [0, 1, 2]
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


def test_with_full_attention_a_span_is_one_row() -> None:
    """Split by blocks, its tokens would not see what follows them."""
    spans = [(0, 20), (12, 4), (8, 11)]
    ends = torch.tensor([20, 30, 19], dtype=torch.int32)
    rows = whole_rows(fake_batch(spans, padding=2), 3, ends)
    assert owners(rows) == [0, 1, 2]
    assert rows.query_start.tolist() == [0, 20, 24, 35]
    assert rows.query_start.dtype == rows.seq_lens.dtype == torch.int32
    assert rows.seq_lens.tolist() == [20, 30, 19]
    assert rows.max_query_len == 20
    table = torch.arange(12).view(3, 4)
    assert torch.equal(rows.block_table(table), table)


@pytest.mark.parametrize("seed", range(10))
def test_no_batch_has_more_rows_than_buffers_are_made_for(seed: int) -> None:
    """A backend writes a number for each row, and there is no room behind the last."""
    rng = random.Random(seed)
    block, max_tokens = rng.choice([4, 16, 32]), 512
    lengths = [block * rng.randint(1, 8) for _ in range(rng.randint(1, 16))]
    while sum(lengths) > max_tokens:
        lengths.pop()
    rows = block_causal_rows(fake_batch([(0, n) for n in lengths]), len(lengths), block)
    assert rows.num_rows <= max_rows(2, max_tokens, block)
    one_long = block_causal_rows(fake_batch([(0, max_tokens)]), 1, block)
    assert one_long.num_rows == max_rows(2, max_tokens, block)
    guided = check_guided([Guided(10, 12)] * len(lengths))
    assert guided.num_rows == max_rows(len(lengths), max_tokens, None)


PAGE = 4


@dataclass
class Guided:
    """A request that may be guided: where it lies, what it forwards."""

    end: int
    twin: int
    """0: not guided."""
    start: int = 0

    @property
    def length(self) -> int:
        if not self.twin:
            return self.end - self.start
        if self.start == 0:
            return self.twin + self.end
        return 2 * (self.stop - self.start)

    stop: int = 0
    """Where a cached step ends."""

    def queries(self) -> list[int]:
        """First page position of the branch of each token; -1: nobody's."""
        if not self.twin:
            return [0] * self.length
        if self.start == 0:
            gap = self.twin - self.end
            return [0] * self.end + [-1] * gap + [self.twin] * self.end
        half = self.stop - self.start
        return [0] * half + [self.twin] * half


def check_guided(requests: list[Guided]) -> AttentionRows:
    """Compare the pages that each token reads with those of its branch."""
    batch = fake_batch([(r.start, r.length) for r in requests], padding=1)
    rows = guided_rows(
        batch,
        np.array([r.end for r in requests]),
        np.array([r.twin for r in requests]),
        PAGE,
        torch.device("cpu"),
    )
    pages = max(ceil((r.twin + r.end) / PAGE) for r in requests) + 1
    # Pages of all requests differ, and are in no order.
    shuffled = torch.randperm(len(requests) * pages, generator=torch.manual_seed(0))
    table = shuffled.view(len(requests), pages)
    tables = rows.block_table(table)
    assert tables.shape == (rows.num_rows, pages)
    assert rows.query_start_device.tolist() == rows.query_start.tolist()
    seen = []
    for index, keys in enumerate(rows.seq_lens.tolist()):
        first, last = rows.query_start[index : index + 2].tolist()
        assert 0 < last - first <= rows.max_query_len
        read = [(int(tables[index, k // PAGE]), k % PAGE) for k in range(keys)]
        seen += [read] * (last - first)
    expected: list[list[tuple[int, int]] | None] = []
    for index, request in enumerate(requests):
        for branch in request.queries():
            keys = range(branch, branch + request.end)
            read = [(int(table[index, k // PAGE]), k % PAGE) for k in keys]
            expected.append(None if branch < 0 else read)
    assert len(seen) == len(expected)
    for got, wanted in zip(seen, expected, strict=True):
        if wanted is not None:
            assert got == wanted
    return rows


@pytest.mark.parametrize(
    ("requests", "owner"),
    [
        ([Guided(10, 12)], [0, 0, 0]),  # a refresh, with a gap between the branches
        ([Guided(12, 12)], [0, 0]),  # without
        ([Guided(14, 16, start=9, stop=12)], [0, 0]),  # a step of a dual cache
        ([Guided(14, 16, start=9, stop=14)], [0, 0]),  # of a prefix cache
        ([Guided(7, 0), Guided(5, 8), Guided(9, 0, start=6)], [0, 1, 1, 1, 2]),
        ([Guided(1, 4, start=0)], [0, 0, 0]),
    ],
)
def test_a_branch_sees_its_own_pages_alone(
    requests: list[Guided], owner: list[int]
) -> None:
    """The unconditional branch would see the prompt, or nothing of the answer."""
    rows = check_guided(requests)
    assert owners(rows) == owner


@pytest.mark.parametrize("seed", range(20))
def test_guided_requests_mix_with_others(seed: int) -> None:
    """A row too many shifts all that follow it."""
    rng = random.Random(seed)
    requests = []
    for _ in range(rng.randint(1, 5)):
        end = rng.randint(2, 30)
        twin = rng.choice([0, ceil(end / PAGE) * PAGE])
        start = rng.choice([0, rng.randint(1, end - 1)])
        requests.append(Guided(end, twin, start, stop=rng.randint(start + 1, end)))
        if not twin:
            requests[-1].start = min(start, end - 1)
    check_guided(requests)


def test_guided_rows_have_the_types_of_others() -> None:
    """A kernel reads int64 lengths as twice as many int32 ones."""
    rows = check_guided([Guided(10, 12), Guided(5, 0)])
    assert rows.owner is not None and rows.owner.dtype == torch.int64
    assert rows.query_start.dtype == rows.seq_lens.dtype == torch.int32
    assert rows.query_start.device.type == "cpu"
    tables = rows.block_table(torch.zeros(2, 9, dtype=torch.int32))
    assert tables.dtype == torch.int32


def test_a_shifted_table_stays_within_its_own() -> None:
    """An index past a row is the next request's page, or out of bounds."""
    rows = AttentionRows(
        owner=torch.tensor([1, 1, 0]),
        query_start=torch.arange(4, dtype=torch.int32),
        query_start_device=torch.arange(4, dtype=torch.int32),
        seq_lens=torch.tensor([4, 4, 4], dtype=torch.int32),
        max_query_len=1,
        first_page=torch.tensor([0, 2, 1]),
    )
    table = torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23]])
    shifted = rows.block_table(table)
    assert shifted[0].tolist() == [20, 21, 22, 23]
    assert shifted[1, :2].tolist() == [22, 23]
    assert shifted[2, :3].tolist() == [11, 12, 13]
    assert set(shifted[1].tolist()) <= {20, 21, 22, 23}
    assert table.tolist() == [[10, 11, 12, 13], [20, 21, 22, 23]]
