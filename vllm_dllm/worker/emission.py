"""Emission: which tokens of the blocks of a step are handed out."""

import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.ops.blocks import Leaving, leave
from vllm_dllm.worker.canvas_batch import CanvasBatch


def emit(batch: CanvasBatch, done: torch.Tensor, max_len: torch.Tensor) -> Leaving:
    """The stable tokens of each of `n` requests, up to its first mask, and what is left
    of each of `m` blocks.

    Args:
        done: [m] bool: decoded positions of the block are stable.
        max_len: [num_slots] int64: known tokens at which requests end.
    """
    may_leave = batch.active & done
    if batch.leaves_whole is not None:
        may_leave &= ~(batch.leaves_whole & batch.masked.any(dim=1))
    blocks = batch.tokens, batch.masked, batch.first, batch.length
    if batch.spans.rows is None:
        room = max_len[batch.slot] - batch.known
        return leave(*blocks, may_leave, room)
    return _of_several(batch, leave(*blocks, may_leave, None), max_len)


def _of_several(batch: CanvasBatch, could: Leaving, max_len: torch.Tensor) -> Leaving:
    """A block hands out tokens if those before it have handed out all of theirs.

    could: what each block could hand out.
    """
    spans, rows, finished = batch.spans, batch.spans.rows, could.finished
    assert rows is not None
    # Blocks of a request that are not finished, up to and with each block.
    unfinished = (~finished).long().cumsum(0)
    before = unfinished - (~finished).long()
    of_others = before[rows.begin][rows.owner]
    leaves = before == of_others
    count = could.count * leaves
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
    return Leaving(tokens, torch.minimum(total, room), left, finished & leaves)
