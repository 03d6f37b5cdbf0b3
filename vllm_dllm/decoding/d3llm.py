"""d3llm: several blocks of a canvas that sees itself whole, by entropy.

Source: d3LLM `generate_multi_block`. The answer is cut into blocks of `block_length`,
which open from the left: the next one as soon as the last has `add_block_threshold` of
its tokens. Of the masks of all open blocks, those with e_i <= `entropy_threshold`
become tokens, and so does the lowest e_i; if none of these is in the first block that
has masks, the lowest of that one too. The authors' code for Dream differs: e_i must be
below the threshold, and only the first block is given a token in any case.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class D3LLM(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"entropy_threshold", "add_block_threshold", "block_length"}
    )
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.entropy is not None
        block, is_open = open_blocks(canvas)
        taken = self.taken(canvas, canvas.masked & is_open)
        width = canvas.masked.shape[1]
        first = block.masked_fill(~canvas.masked, width).amin(dim=1, keepdim=True)
        front = canvas.masked & (block == first)
        must = front.any(dim=1) & ~(front & taken).any(dim=1)
        return taken | best(-canvas.entropy, front, must.long())

    def taken(self, canvas: CanvasStep, among: torch.Tensor) -> torch.Tensor:
        """[n, width] bool: what becomes a token, wherever it is; among: as that."""
        assert canvas.entropy is not None
        threshold = canvas.params["entropy_threshold"].unsqueeze(1)
        lowest = best(-canvas.entropy, among, among.any(dim=1).long())
        return (among & (canvas.entropy <= threshold)) | lowest


class D3LLMOfDream(D3LLM):
    def taken(self, canvas: CanvasStep, among: torch.Tensor) -> torch.Tensor:
        assert canvas.entropy is not None
        return among & (
            canvas.entropy < canvas.params["entropy_threshold"].unsqueeze(1)
        )


def open_blocks(canvas: CanvasStep) -> tuple[torch.Tensor, torch.Tensor]:
    """The number of each position's block, and whether it is open.

    The authors open at most one block in a step. One that was opened has no token yet,
    so which are open follows from what is decoded.

    Returns:
        [n, width] int64, [n, width] bool.
    """
    masked, width = canvas.masked, canvas.masked.shape[1]
    column = torch.arange(width, device=masked.device)
    block = column // canvas.params["block_length"].unsqueeze(1)
    inside = (column < canvas.length.unsqueeze(1)).double()
    none = torch.zeros_like(inside)
    masks = none.scatter_add(1, block, masked.double())
    positions = none.scatter_add(1, block, inside).clamp(min=1)
    # As the authors' numbers, which are no float32: 1 - 9 / 10 is less than 0.1. Not 0,
    # with which a block opens that has no token.
    share = canvas.params["add_block_threshold"].double().round(decimals=6)
    share = share.clamp(min=1e-6)
    far = (1 - masks / positions >= share.unsqueeze(1)) | (masks == 0)
    opened = far.long().cumprod(dim=1).roll(1, dims=1)
    opened[:, 0] = 1
    return block, opened.gather(1, block).bool()
