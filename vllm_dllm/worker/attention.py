"""Attention of spans on stock backends, in rows without a causal mask.

Block-causal: a query at position p sees the keys of its own block and of all blocks
before it. So a span of k blocks is handed to the backend as k rows of `block` queries
each, where row j ends at the end of its block: its keys are those of the earlier blocks
(from the cache, or written by this same forward) and its own.

Full attention: a span is one row that sees the keys of the whole sequence, from the
cache where the span does not hold them. A guided request has a row for each branch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch


@dataclass
class AttentionRows:
    """What the backend sees as its requests."""

    query_start: torch.Tensor
    """[num_rows + 1] int32: first query of each row, on the CPU."""
    query_start_device: torch.Tensor
    """The same on the device."""
    seq_lens: torch.Tensor
    """[num_rows] int32: number of keys that a row sees."""
    max_query_len: int
    owner: torch.Tensor | None = None
    """[num_rows] int64: index in the batch of the request that a row belongs to; None
    if the rows are the requests."""
    first_page: torch.Tensor | None = None
    """[num_rows] int64: where in the request's block table a row's keys begin; None if
    all begin at its start."""

    @property
    def num_rows(self) -> int:
        return len(self.seq_lens)

    def block_table(self, table: torch.Tensor) -> torch.Tensor:
        """The block tables of the rows, from those of the requests."""
        if self.owner is None:
            return table
        table = table[self.owner]
        if self.first_page is None:
            return table
        pages = torch.arange(table.shape[1], device=table.device)
        shifted = self.first_page.unsqueeze(1) + pages
        return table.gather(1, shifted.clamp(max=table.shape[1] - 1))


def max_rows(max_num_reqs: int, max_num_tokens: int, block: int | None) -> int:
    """Number of rows that no batch exceeds; `block` is None with full attention."""
    most = 3 * max_num_reqs if block is None else max_num_tokens // block
    return max(most, max_num_reqs)


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
    if (num_tokens == block).all() or (num_tokens % block).any():
        return whole_rows(input_batch, num_reqs, seq_lens)
    rows_per_request = async_tensor_h2d(num_tokens // block, device, torch.int64)
    num_rows = int(num_tokens.sum()) // block
    owner = torch.repeat_interleave(rows_per_request, output_size=num_rows)
    # Rows of a request end `block` apart, the last one at the end of the sequence.
    rows_after = rows_per_request.cumsum(0)[owner] - torch.arange(
        1, num_rows + 1, device=device
    )
    return AttentionRows(
        query_start=torch.arange(num_rows + 1, dtype=torch.int32) * block,
        query_start_device=torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        * block,
        owner=owner,
        seq_lens=(seq_lens[owner] - rows_after * block).to(torch.int32),
        max_query_len=block,
    )


def whole_rows(
    input_batch: InputBatch, num_reqs: int, seq_lens: torch.Tensor
) -> AttentionRows:
    """One row per request, which sees `seq_lens` ([num_reqs] int32) keys.

    Nothing is copied: a CUDA graph of the whole model reads the runner's own tensors,
    and `seq_lens`, at every replay.
    """
    return AttentionRows(
        query_start=torch.from_numpy(input_batch.query_start_loc_np[: num_reqs + 1]),
        query_start_device=input_batch.query_start_loc[: num_reqs + 1],
        seq_lens=seq_lens,
        max_query_len=int(input_batch.num_scheduled_tokens[:num_reqs].max()),
    )


def guided_rows(
    input_batch: InputBatch,
    ends: np.ndarray,
    twins: np.ndarray,
    page: int,
    device: torch.device,
) -> AttentionRows:
    """Rows of a batch in which some requests have an unconditional branch.

    The branch has the second half of a span's tokens, and the pages from `twin` on. In
    a refresh, what lies between the branches is a row of its own, which nobody reads.

    Args:
        ends: [num_reqs] length of each sequence.
        twins: [num_reqs] where each unconditional branch lies; 0 without guidance.
        page: KV page in tokens.
    """
    rows: list[tuple[int, int, int, int]] = []  # owner, queries, keys, first page
    for owner, (end, twin) in enumerate(
        zip(ends.tolist(), twins.tolist(), strict=True)
    ):
        length = int(input_batch.num_scheduled_tokens[owner])
        if not twin:
            rows.append((owner, length, end, 0))
            continue
        refresh = length == twin + end
        half = end if refresh else length // 2
        rows.append((owner, half, end, 0))
        if refresh and twin > end:
            rows.append((owner, twin - end, twin, 0))
        rows.append((owner, half, end, twin // page))
    table = torch.tensor(rows, dtype=torch.int64)
    query_start = torch.zeros(len(rows) + 1, dtype=torch.int32)
    query_start[1:] = table[:, 1].cumsum(0)
    on_device = async_tensor_h2d(table, device)
    return AttentionRows(
        query_start=query_start,
        query_start_device=async_tensor_h2d(query_start, device),
        owner=on_device[:, 0],
        seq_lens=on_device[:, 2].int(),
        max_query_len=int(table[:, 1].max()),
        first_page=on_device[:, 3],
    )
