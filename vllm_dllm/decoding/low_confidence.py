"""low_confidence: a fixed number of tokens per step, the surest first.

Source: LLaDA `generate` (`remasking="low_confidence"`), SDAR
`low_confidence_static`: in step k the n_k masked positions with the largest
confidence become tokens, where n_k spreads the block over the given number of steps.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule


class LowConfidence(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"steps"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        return canvas.best_of_quota(canvas.confidence)
