"""Block-causal attention on stock backends: one attention row per block of a span.

A query at position p sees the keys of its own block and of all blocks before it. So a
span of k blocks is handed to the backend as k rows of `block` queries each, without a
causal mask, where row j ends at the end of its block: its keys are those of the earlier
blocks (from the cache, or written by this same forward) and its own.
"""

from dataclasses import dataclass

import torch
from vllm.v1.worker.gpu.input_batch import InputBatch


@dataclass
class AttentionRows:
    """What the backend sees as its requests."""

    owner: torch.Tensor
    """[num_rows] int64: index in the batch of the request that a row belongs to."""
    query_start: torch.Tensor
    """[num_rows + 1] int32: first query of each row, on the CPU."""
    seq_lens: torch.Tensor
    """[num_rows] int32: number of keys that a row sees."""
    max_query_len: int


def block_causal_rows(
    input_batch: InputBatch, num_reqs: int, block: int
) -> AttentionRows:
    """Rows of a batch of spans, in the order of their tokens.

    Every span is a whole number of blocks. A dummy batch (profiling, warm-up) need not
    be; it gets one row per request.
    """
    num_tokens = input_batch.num_scheduled_tokens[:num_reqs]
    seq_lens = input_batch.seq_lens[:num_reqs]
    device = seq_lens.device
    if (num_tokens % block).any():
        return AttentionRows(
            owner=torch.arange(num_reqs, device=device),
            query_start=torch.from_numpy(
                input_batch.query_start_loc_np[: num_reqs + 1]
            ),
            seq_lens=seq_lens,
            max_query_len=int(num_tokens.max()),
        )
    rows_per_request = torch.from_numpy(num_tokens // block).to(device, torch.int64)
    num_rows = int(num_tokens.sum()) // block
    owner = torch.repeat_interleave(rows_per_request, output_size=num_rows)
    # Rows of a request end `block` apart, the last one at the end of the sequence.
    rows_after = rows_per_request.cumsum(0)[owner] - torch.arange(
        1, num_rows + 1, device=device
    )
    return AttentionRows(
        owner=owner,
        query_start=torch.arange(num_rows + 1, dtype=torch.int32) * block,
        seq_lens=(seq_lens[owner] - rows_after * block).to(torch.int32),
        max_query_len=block,
    )
