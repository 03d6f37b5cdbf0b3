"""local_leap: near a very sure token, less sure ones are believed too.

Source: LocalLeap (arXiv 2510.07081). Masks with c_i >= anchor threshold are anchors.
Positions at most `radius` away from an anchor, itself included, have the neighbor
threshold, all others the anchor threshold. The masks with c_i >= their threshold (not
strict) become tokens, and the surest one always does.

Neighbourhoods end at the borders of the block. Nothing is lost by that: anchors are
masks of the block, and only masks of the block can become tokens.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class LocalLeap(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset(
        {
            "local_leap_anchor_threshold",
            "local_leap_neighbor_threshold",
            "local_leap_radius",
        }
    )

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        params = {name: value.unsqueeze(1) for name, value in canvas.params.items()}
        anchor_threshold = params["local_leap_anchor_threshold"]
        neighbor_threshold = params["local_leap_neighbor_threshold"]
        anchor = canvas.masked & (canvas.confidence >= anchor_threshold)
        near = _within(anchor, params["local_leap_radius"])
        threshold = torch.where(near, neighbor_threshold, anchor_threshold)
        surest = best(canvas.confidence, canvas.masked, canvas.masked.any(dim=1).long())
        return (canvas.masked & (canvas.confidence >= threshold)) | surest


def _within(chosen: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Positions with a chosen one at most `radius` away.

    Args:
        chosen: [n, block] bool tensor.
        radius: [n, 1] int64 tensor.

    Returns:
        [n, block] bool tensor.
    """
    block = chosen.shape[1]
    column = torch.arange(block, device=chosen.device)
    # Column j holds the number of chosen positions before position j.
    before = torch.nn.functional.pad(chosen.cumsum(dim=1), (1, 0))
    start = (column - radius).clamp(min=0)
    end = (column + radius + 1).clamp(max=block)
    return before.gather(1, end) > before.gather(1, start)
