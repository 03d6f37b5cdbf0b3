"""Emission: which tokens of the blocks of a step are handed out."""

import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.ops.blocks import Leaving, leave
from vllm_dllm.worker.canvas import Canvas
from vllm_dllm.worker.canvas_batch import CanvasBatch


def emit(batch: CanvasBatch, done: torch.Tensor, canvas: Canvas) -> Leaving:
    """Hand out the stable tokens of each of `n` requests, up to its first mask, and
    keep what is left of each of `m` blocks.

    Args:
        done: [m] bool: decoded positions of the block are stable.

    Returns:
        `tokens` and `count`, int32, of the requests, `finished` of the blocks.
    """
    if batch.leaves_whole is not None:
        done = done & ~(batch.leaves_whole & batch.masked.any(dim=1))
    if batch.spans.rows is None:
        return canvas.hand_out(batch, done)
    may_leave, first = batch.active & done, batch.first
    could = leave(batch.tokens, batch.masked, first, batch.length, may_leave)
    return _of_several(batch, could, first, canvas)


def _of_several(
    batch: CanvasBatch, could: Leaving, first: torch.Tensor, canvas: Canvas
) -> Leaving:
    """A block hands out tokens if those before it have handed out all of theirs.

    Args:
        could: what each block could hand out.
        first: [m] int64: as `CanvasBatch.first`.
    """
    spans, rows, finished = batch.spans, batch.spans.rows, could.finished
    assert rows is not None
    # Blocks of a request that are not finished, up to and with each block.
    unfinished = (~finished).long().cumsum(0)
    before = unfinished - (~finished).long()
    of_others = before[rows.begin][rows.owner]
    leaves = before == of_others
    count, finished = could.count * leaves, finished & leaves
    total = torch.zeros_like(spans.known).scatter_add_(0, rows.owner, count)
    room = canvas.max_len[spans.slot] - spans.known
    offset = (spans.known - rows.start[rows.begin]).unsqueeze(1)
    longest = int((rows.sizes_np * rows.block_np).max())
    offset = offset + torch.arange(longest, device=offset.device)
    last = async_tensor_h2d(rows.sizes_np - 1, offset.device).unsqueeze(1)
    length = rows.block.unsqueeze(1)
    block = (offset // length).minimum(last)
    tokens = batch.tokens[rows.begin.unsqueeze(1) + block, offset % length]
    canvas.scatter(batch, first + count, finished)
    return Leaving(tokens, torch.minimum(total, room).int(), finished)
