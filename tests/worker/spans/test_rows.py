"""Rows of attention: whose they are, and which pages they read."""

import torch

from tests.worker.spans.batches import a_batch, have_types_of_backends, owners
from vllm_dllm.worker.spans.rows import AttentionRows, whole_rows


def test_with_full_attention_a_span_is_one_row() -> None:
    """Split by blocks, its tokens would not see what follows them."""
    spans = [(0, 20), (12, 4), (8, 11)]
    ends = torch.tensor([20, 30, 19], dtype=torch.int32)
    rows = whole_rows(a_batch(spans, padding=2), 3, ends)
    assert owners(rows) == [0, 1, 2]
    assert rows.query_start.tolist() == [0, 20, 24, 35]
    assert have_types_of_backends(rows)
    assert rows.seq_lens.tolist() == [20, 30, 19]
    assert rows.max_query_len == 20
    table = torch.arange(12).view(3, 4)
    assert torch.equal(rows.block_table(table), table)


def test_rows_are_the_same_only_if_all_lengths_are() -> None:
    """A step would attend to keys as the one before it did: to fewer than there are."""
    spans, table = [(0, 4), (12, 4)], torch.zeros(2, 8, dtype=torch.int32)
    batch, ends = a_batch(spans), torch.tensor([4, 16], dtype=torch.int32)

    def same() -> object:
        return whole_rows(batch, 2, ends).same_as([table])

    first = same()
    assert first is not None
    assert same() == first
    ends[1] = 20
    assert same() != first
    ends[1] = 16
    batch.query_start_loc_np[1] = 3
    assert same() != first
    batch.query_start_loc_np[1] = 4
    assert same() == first
    assert whole_rows(batch, 2, ends).same_as([table.clone()]) != first
    assert whole_rows(batch, 2, ends.clone()).same_as([table]) != first


def test_a_shifted_table_stays_within_its_own() -> None:
    """An index past a row is the next request's page, or out of bounds."""
    rows = AttentionRows(
        owner=torch.tensor([1, 1, 0]),
        query_start=torch.arange(4, dtype=torch.int32),
        query_start_device=torch.arange(4, dtype=torch.int32),
        seq_lens=torch.tensor([4, 4, 4], dtype=torch.int32),
        max_query_len=1,
        max_seq_len=4,
        first_page=torch.tensor([0, 2, 1]),
    )
    table = torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23]])
    shifted = rows.block_table(table)
    assert shifted[0].tolist() == [20, 21, 22, 23]
    assert shifted[1, :2].tolist() == [22, 23]
    assert shifted[2, :3].tolist() == [11, 12, 13]
    assert set(shifted[1].tolist()) <= {20, 21, 22, 23}
    assert table.tolist() == [[10, 11, 12, 13], [20, 21, 22, 23]]
