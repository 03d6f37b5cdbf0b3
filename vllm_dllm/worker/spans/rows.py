"""Attention of spans on stock backends, in rows of one kind of mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    max_seq_len: int
    """No row sees more keys."""
    owner: torch.Tensor | None = None
    """[num_rows] int64: index in the batch of the request that a row belongs to; None
    if the rows are the requests."""
    causal: bool = False
    """Whether a query sees no key after itself; of all rows."""
    first_page: torch.Tensor | None = None
    """[num_rows] int64: where in the request's block table a row's keys begin; None if
    all begin at its start."""

    @classmethod
    def of_table(cls, table: np.ndarray, device: torch.device) -> "AttentionRows":
        """Rows in the order of their queries.

        table: [num_rows, 4] int64: index in the batch of a row's request, number of its
        queries, number of its keys, and where in the block table these begin.
        """
        query_start_np = np.zeros(len(table) + 1, dtype=np.int32)
        query_start_np[1:] = table[:, 1].cumsum()
        on_device = async_tensor_h2d(table, device)
        return cls(
            query_start=torch.from_numpy(query_start_np),
            query_start_device=async_tensor_h2d(query_start_np, device),
            owner=on_device[:, 0],
            seq_lens=on_device[:, 2].int(),
            max_query_len=int(table[:, 1].max()),
            max_seq_len=int(table[:, 2].max()),
            first_page=on_device[:, 3] if table[:, 3].any() else None,
        )

    @property
    def num_rows(self) -> int:
        return self.seq_lens.shape[0]

    def same_as(self, pages: Sequence[torch.Tensor]) -> tuple[Any, ...] | None:
        """Equal for steps that one metadata will do for; None where that cannot be
        said: not every row is a request, whose table the runner keeps, or the lengths
        are on another device, from which to read them takes longer than to do without.

        pages: tensors of pages that the runner fills in again for each step.
        """
        if self.owner is not None or not self.seq_lens.is_cpu:
            return None
        filled = self.seq_lens, self.query_start_device, *pages
        lengths = self.seq_lens.numpy().tobytes(), self.query_start.numpy().tobytes()
        limits = self.max_query_len, self.max_seq_len, self.causal
        return *map(torch.Tensor.data_ptr, filled), *lengths, *limits

    def as_requests_of(
        self, input_batch: InputBatch, tables: Sequence[torch.Tensor]
    ) -> "AttentionRows":
        """The same, in the runner's tensors of what the attention of requests reads: a
        CUDA graph of the whole model, which is captured with these, takes each row for
        a request. The rest of the step finds what was in them in copies.

        tables: block tables, [padded, max_pages] int32 each; those of the rows after
        it.
        """
        assert self.owner is not None
        for table in tables:
            table[: self.num_rows] = self.block_table(table)
        starts, lengths = input_batch.query_start_loc, input_batch.seq_lens
        input_batch.query_start_loc = starts.clone()
        input_batch.seq_lens = lengths.clone()
        # What is past the rows is padding, as it was.
        starts[: self.num_rows + 1] = self.query_start_device
        lengths[: self.num_rows] = self.seq_lens
        query_start = self.query_start[-1].repeat(len(starts))
        query_start[: self.num_rows + 1] = self.query_start
        return AttentionRows(
            query_start=query_start,
            query_start_device=starts,
            seq_lens=lengths,
            max_query_len=self.max_query_len,
            max_seq_len=self.max_seq_len,
            causal=self.causal,
        )

    def block_table(self, table: torch.Tensor) -> torch.Tensor:
        """The block tables of the rows, from those of the requests.

        table: [num_reqs, max_pages] int32 -> [num_rows, max_pages] int32.
        """
        if self.owner is None:
            return table
        table = table[self.owner]
        if self.first_page is None:
            return table
        pages = torch.arange(table.shape[1], device=table.device)
        shifted = self.first_page.unsqueeze(1) + pages
        return table.gather(1, shifted.clamp(max=table.shape[1] - 1))


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
        max_seq_len=int(input_batch.seq_lens_cpu_upper_bound.numpy()[:num_reqs].max()),
    )
