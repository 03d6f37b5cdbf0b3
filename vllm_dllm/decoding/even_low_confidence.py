"""low_confidence where the steps of a block are spread over its masks.

Source: Stable-DiffCoder `generate_block`. A block that begins with tokens of the prompt
has fewer masks than positions. As its first steps take one more where masks and steps
do not divide, what is left is always spread evenly over the steps that are left.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class EvenLowConfidence(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"steps"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        masks = canvas.masked.sum(dim=1)
        steps = (canvas.params["steps"] - canvas.step).clamp(min=1)
        return best(canvas.confidence, canvas.masked, -(-masks // steps))
