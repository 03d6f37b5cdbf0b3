"""threshold with several blocks in flight (Diffulex's multi_bd, naive).

Of each open block, with the masked positions H = {i : c_i > threshold} (strict): H
becomes tokens. If H is empty, the surest position does, provided that the share of the
block before it that is decoded is at least `semi_complete_threshold`; in front of all
blocks it is 1. So a block may be given nothing in a step.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class BufferedThreshold(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"threshold", "semi_complete_threshold"}
    )

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.before is not None
        threshold = canvas.params["threshold"].unsqueeze(1)
        above = canvas.masked & (canvas.confidence > threshold)
        must = canvas.before >= canvas.params["semi_complete_threshold"]
        must &= canvas.masked.any(dim=1) & ~above.any(dim=1)
        return above | best(canvas.confidence, canvas.masked, must.long())
