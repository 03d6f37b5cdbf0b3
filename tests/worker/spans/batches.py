"""Batches of spans as vLLM's runner prepares them, and who sees what of their rows."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vllm_dllm.worker.spans.rows import AttentionRows


def a_batch(spans: list[tuple[int, int]], padding: int = 0) -> Any:
    """Spans as (first position, number of tokens), then unused entries."""
    lengths = [length for _, length in spans] + [0] * padding
    ends = [start + length for start, length in spans] + [9999] * padding
    query_start = np.cumsum([0, *lengths], dtype=np.int32)
    return SimpleNamespace(
        num_reqs=len(spans),
        num_scheduled_tokens=np.array(lengths, dtype=np.int32),
        num_computed_tokens_np=np.array([start for start, _ in spans]),
        positions=torch.cat(
            [torch.arange(start, start + length) for start, length in spans]
        ),
        seq_lens=torch.tensor(ends, dtype=torch.int32),
        seq_lens_cpu_upper_bound=torch.tensor(ends, dtype=torch.int32),
        query_start_loc_np=query_start,
        query_start_loc=torch.from_numpy(query_start.copy()),
    )


def owners(rows: AttentionRows) -> list[int]:
    """The request of each row."""
    if rows.owner is None:
        return list(range(rows.num_rows))
    return rows.owner.tolist()


def have_types_of_backends(rows: AttentionRows) -> bool:
    assert rows.query_start.device.type == "cpu"
    assert rows.query_start_device.dtype == torch.int32
    assert rows.owner is None or rows.owner.dtype == torch.int64
    return rows.query_start.dtype == rows.seq_lens.dtype == torch.int32
