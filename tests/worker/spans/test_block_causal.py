"""Rows of attention against a dense mask: a query sees its block and those before."""

import random

import pytest
import torch

from tests.worker.desk import Desk
from tests.worker.spans.batches import a_batch, have_types_of_backends, owners
from vllm_dllm.worker.spans.block_causal import BlockCausalLayout, block_causal_rows
from vllm_dllm.worker.spans.rows import AttentionRows


def seen_by_rows(rows: AttentionRows, num_tokens: int, width: int) -> torch.Tensor:
    """[num_tokens, num_reqs * width] bool, as a backend without a causal mask sees."""
    mask = torch.zeros(num_tokens, (max(owners(rows)) + 1) * width).bool()
    starts = rows.query_start.tolist()
    assert rows.query_start_device.tolist() == starts
    for row, (owner, keys) in enumerate(
        zip(owners(rows), rows.seq_lens.tolist(), strict=True)
    ):
        assert starts[row + 1] - starts[row] <= rows.max_query_len
        assert keys <= rows.max_seq_len
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
        start, length = spans[request]
        for key in range(min((position // block + 1) * block, start + length)):
            mask[query, request * width + key] = True
    return mask


def check(spans: list[tuple[int, int]], block: int, padding: int = 0) -> AttentionRows:
    rows = block_causal_rows(a_batch(spans, padding), len(spans), block)
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
    # Blocks that end with an answer; and the warm-up's, which end anywhere.
    cut = [(start, length - rng.randrange(block)) for start, length in spans]
    check(cut, block)
    check(cut, block, padding=2)


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
    assert rows.owner is not None and have_types_of_backends(rows)


@pytest.mark.parametrize("padding", [1, 7])
def test_entries_behind_the_batch_are_not_read(padding: int) -> None:
    """The arrays are as long as the largest batch, and hold what was there before."""
    spans = [(8, 8), (0, 4), (16, 4)]
    padded, alone = check(spans, 4, padding), check(spans, 4)
    assert owners(padded) == owners(alone)
    assert torch.equal(padded.seq_lens, alone.seq_lens)
    batch = a_batch([*spans, (0, 3)])
    assert owners(block_causal_rows(batch, 3, 4)) == owners(alone)


@pytest.mark.parametrize("padding", [0, 3])
def test_a_cuda_graph_finds_a_block_of_each_request_where_it_was(padding: int) -> None:
    """A replay reads the addresses of the capture. Tensors made for the step would be
    freed by then, and the answers those of another step."""
    spans = [(8, 4), (0, 4), (16, 4)]
    batch = a_batch(spans, padding)
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


def test_the_batch_is_left_as_it_was() -> None:
    """vLLM goes on with the same arrays."""
    spans = [(8, 8), (0, 4)]
    batch, same = a_batch(spans), a_batch(spans)
    rows = block_causal_rows(batch, 2, 4)
    rows.seq_lens += 1
    rows.query_start += 1
    assert torch.equal(batch.seq_lens, same.seq_lens)
    assert (batch.num_scheduled_tokens == same.num_scheduled_tokens).all()
    assert (batch.query_start_loc_np == same.query_start_loc_np).all()


@pytest.mark.parametrize("seed", range(10))
def test_no_batch_has_more_rows_than_buffers_are_made_for(seed: int) -> None:
    """A backend writes a number for each row, and there is no room behind the last."""
    rng = random.Random(seed)
    block, max_tokens = rng.choice([4, 16, 32]), 512
    lengths = [rng.randint(1, 8 * block) for _ in range(rng.randint(1, 16))]
    while sum(lengths) > max_tokens:
        lengths.pop()
    config = Desk("block-causal", block=block).config
    most = BlockCausalLayout.max_rows(config, len(lengths), max_tokens)
    rows = block_causal_rows(a_batch([(0, n) for n in lengths]), len(lengths), block)
    assert rows.num_rows <= most
    # As many requests as begin another row with one token.
    ragged = [block + 1] * (max_tokens // (block + 1))
    rows = block_causal_rows(a_batch([(0, n) for n in ragged]), len(ragged), block)
    assert rows.num_rows == 2 * len(ragged)
    most = BlockCausalLayout.max_rows(config, len(ragged), max_tokens)
    assert rows.num_rows <= most <= 2 * len(ragged) + 1
