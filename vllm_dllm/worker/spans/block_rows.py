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
    block: torch.Tensor
    """[n] int64: length of the blocks of each request."""
    block_np: np.ndarray
    """[n] int64: the same on the CPU."""
    place: torch.Tensor
    """[m] int64: which of its slot's blocks it is, in the tables."""
    start: torch.Tensor
    """[m] int64: first position."""
    length: torch.Tensor
    """[m] int64: number of positions; less than a block at the end of the answer, 0
    past it."""
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
    block_np: np.ndarray,
    grids: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    first: torch.Tensor,
    places: torch.Tensor,
) -> BlockRows:
    """The blocks of a step.

    Args:
        sizes_np: [n] int64, on the CPU: blocks of each request.
        left_np: [n] int64, on the CPU: positions from the first of them to the end of
            its span, or more.
        block_np: [n] int64, on the CPU: length of a block.
        grids: origin, block and end of its grid (plans/grid.py), each [n] int64.
        first: [n] int64: start of its first block.
        places: [n] int64: how many blocks its slot has a place for.
    """
    origin, block, end = grids
    device = first.device
    owner_np = np.repeat(np.arange(len(sizes_np)), sizes_np)
    begin_np = sizes_np.cumsum() - sizes_np
    order_np = np.arange(len(owner_np)) - begin_np[owner_np]
    owner, order, begin = (
        async_tensor_h2d(values, device) for values in (owner_np, order_np, begin_np)
    )
    length = block[owner]
    start = first[owner] + order * length
    return BlockRows(
        owner=owner,
        owner_np=owner_np,
        sizes_np=sizes_np,
        begin_np=begin_np,
        begin=begin,
        block=block,
        block_np=block_np,
        place=((first - origin) // block)[owner].add(order) % places[owner],
        start=start,
        length=(end[owner] - start).clamp(min=0).minimum(length),
        is_front=order == 0,
        logit_rows_np=(left_np[owner_np] - order_np * block_np[owner_np]).clip(
            0, block_np[owner_np]
        ),
    )
