"""BlockRows: the blocks of a step in which requests have several of them in flight."""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d


@dataclass
class BlockRows:
    """The `m` blocks of the `n` requests of a step: those of a request one after the
    other, from left to right."""

    owner: torch.Tensor
    """[m] int64: index in the batch of the request that a block belongs to."""
    owner_np: np.ndarray
    """[m] int64: the same on the CPU."""
    sizes_np: np.ndarray
    """[n] int64, on the CPU: how many each request has."""
    begin_np: np.ndarray
    """[n] int64, on the CPU: the first row of each request."""
    begin: torch.Tensor
    """[n] int64: the same on the device."""
    place: torch.Tensor
    """[m] int64: which of its slot's blocks it is, in the tables."""
    start: torch.Tensor
    """[m] int64: first position."""
    is_there: torch.Tensor
    """[m] bool: False past the end of the answer."""
    is_front: torch.Tensor
    """[m] bool: the first block of its request."""
    logit_rows_np: np.ndarray
    """[m] int64, on the CPU: as `SpanBatch.rows_np`, of each block."""


@dataclass
class OpenBlocks:
    """What is open in a step, of its `m` blocks."""

    is_open: torch.Tensor
    """[m] bool."""
    before: torch.Tensor
    """[m] float32: decoded share of the block before it; 1 of a front block."""
    holds_prompt: torch.Tensor
    """[m] bool: whether the block begins with tokens of the prompt."""


def lay_rows(
    sizes_np: np.ndarray,
    left_np: np.ndarray,
    first: torch.Tensor,
    end: torch.Tensor,
    block: int,
) -> BlockRows:
    """The blocks of a step.

    Args:
        sizes_np: [n] int64, on the CPU: blocks in flight of each request.
        left_np: [n] int64, on the CPU: positions from there to the end of its span, or
            more.
        first: [n] int64: start of its first block in flight.
        end: [n] int64: end of its last block ever.
        block: length of a block.
    """
    device = first.device
    owner_np = np.repeat(np.arange(len(sizes_np)), sizes_np)
    begin_np = sizes_np.cumsum() - sizes_np
    order_np = np.arange(len(owner_np)) - begin_np[owner_np]
    owner, order, sizes, begin = (
        async_tensor_h2d(values, device)
        for values in (owner_np, order_np, sizes_np[owner_np], begin_np)
    )
    start = first[owner] + order * block
    return BlockRows(
        owner=owner,
        owner_np=owner_np,
        sizes_np=sizes_np,
        begin_np=begin_np,
        begin=begin,
        place=start // block % sizes,
        start=start,
        is_there=start < end[owner],
        is_front=order == 0,
        logit_rows_np=(left_np[owner_np] - order_np * block).clip(0, block),
    )
