"""StepShape: what of a step follows from how many positions each request forwards.

The host knows all of it, and it is the same in the steps of a block.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.ops.spans import tokens_of


@dataclass(frozen=True)
class StepShape:
    """Fields are as in `SpanBatch`. Steps go on with it, so nothing of it may be
    written to."""

    query_start: torch.Tensor
    owner: torch.Tensor
    decides: torch.Tensor
    decides_np: np.ndarray
    width: int
    rows_np: np.ndarray

    @classmethod
    def of(cls, input_batch: InputBatch, block_np: np.ndarray) -> "StepShape":
        """block_np: [n] int64: length of the blocks of each request."""
        n, query_start_loc = input_batch.num_reqs, input_batch.query_start_loc
        query_start, owner = tokens_of(query_start_loc[: n + 1], input_batch.num_tokens)
        decides_np = input_batch.num_draft_tokens_per_req > 0
        return cls(
            query_start=query_start,
            owner=owner,
            decides=async_tensor_h2d(decides_np, query_start.device),
            decides_np=decides_np,
            width=int(block_np.max()),
            rows_np=np.minimum(block_np, input_batch.num_scheduled_tokens[:n]),
        )


def same_shape(input_batch: InputBatch) -> tuple[bytes, ...]:
    """Equal for steps of one shape, while no slot gets another request."""
    of_requests = (
        input_batch.idx_mapping_np,
        input_batch.num_scheduled_tokens[: input_batch.num_reqs],
        input_batch.num_draft_tokens_per_req > 0,
    )
    return tuple(map(np.ndarray.tobytes, of_requests))
