"""Emission: which tokens of the blocks of a step are handed out."""

from dataclasses import dataclass

import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.worker.canvas_batch import CanvasBatch


@dataclass
class Emission:
    """Of a step, after its tokens were written."""

    tokens: torch.Tensor
    """[n, width of all blocks of a request] int64, left-aligned."""
    count: torch.Tensor
    """[n] int64: how many of them leave."""
    left: torch.Tensor
    """[m] int64: the first column that has not left, of each block."""
    finished: torch.Tensor
    """[m] bool: blocks of which every token has left."""


def emit(batch: CanvasBatch, done: torch.Tensor, max_len: torch.Tensor) -> Emission:
    """The stable tokens of each request, up to its first mask.

    Args:
        done: [m] bool: decoded positions of the block are stable.
        max_len: [num_slots] int64: known tokens at which requests end.
    """
    first, first_mask = batch.first, batch.first_mask()
    may_emit = batch.active & done
    if batch.leaves_whole is not None:
        may_emit &= ~(batch.leaves_whole & batch.masked.any(dim=1))
    finished = may_emit & (first_mask == batch.length)
    count = (first_mask - first) * may_emit
    column, width = batch.column, batch.tokens.shape[1]
    if batch.spans.rows is None:
        room = max_len[batch.slot] - batch.known
        place = (first.unsqueeze(1) + column) % width
        tokens = batch.tokens.gather(1, place)
        left = first + count
        return Emission(tokens, torch.minimum(count, room), left, finished)
    return _of_several(batch, count, finished, max_len)


def _of_several(
    batch: CanvasBatch,
    count: torch.Tensor,
    finished: torch.Tensor,
    max_len: torch.Tensor,
) -> Emission:
    """A block hands out tokens if those before it have handed out all of theirs.

    Args:
        count: [m] int64: tokens that each block could hand out; finished: [m] bool.
    """
    spans, rows = batch.spans, batch.spans.rows
    assert rows is not None
    # Blocks of a request that are not finished, up to and with each block.
    unfinished = (~finished).long().cumsum(0)
    before = unfinished - (~finished).long()
    of_others = before[rows.begin][rows.owner]
    leaves = before == of_others
    count = count * leaves
    total = torch.zeros_like(spans.known).scatter_add_(0, rows.owner, count)
    room = max_len[spans.slot] - spans.known
    offset = (spans.known - rows.start[rows.begin]).unsqueeze(1)
    longest = int((rows.sizes_np * rows.block_np).max())
    offset = offset + torch.arange(longest, device=offset.device)
    last = async_tensor_h2d(rows.sizes_np - 1, offset.device).unsqueeze(1)
    length = rows.block.unsqueeze(1)
    block = (offset // length).minimum(last)
    tokens = batch.tokens[rows.begin.unsqueeze(1) + block, offset % length]
    left = batch.first + count
    return Emission(tokens, torch.minimum(total, room), left, finished & leaves)
