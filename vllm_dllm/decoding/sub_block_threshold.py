"""sub_block_threshold: every token the model is sure of, in one part of the block.

Source: Fast-dLLM v2 `generate`. A block consists of sub-blocks of `sub_block_length`
positions. Of the masks of the leftmost sub-block that has any, the surest one becomes a
token, and so do those with c_i > threshold (strict). What the model says of other
sub-blocks has no part in it.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class SubBlockThreshold(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"threshold", "sub_block_length"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        masked, width = canvas.masked, canvas.masked.shape[1]
        column = torch.arange(width, device=masked.device)
        sub_block = column // canvas.params["sub_block_length"].unsqueeze(1)
        leftmost = sub_block.masked_fill(~masked, width).amin(dim=1, keepdim=True)
        among = masked & (sub_block == leftmost)
        threshold = canvas.params["threshold"].unsqueeze(1)
        sure = among & (canvas.confidence > threshold)
        return sure | best(canvas.confidence, among, among.any(dim=1).long())
