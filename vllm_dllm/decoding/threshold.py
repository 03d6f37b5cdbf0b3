"""threshold: every token the model is sure of, and at least the quota of the step.

Source: LLaDA2.0 `generate`, SDAR `low_confidence_dynamic`. With the masked positions
H = {i : c_i > threshold} (strict) and the quota n_k of the step, H becomes tokens if
|H| >= n_k, else the n_k surest positions do.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class Threshold(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"threshold", "steps"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        threshold = canvas.params["threshold"].unsqueeze(1)
        above = canvas.masked & (canvas.confidence > threshold)
        # The positions above the threshold are the surest ones, so the larger of the
        # two sets holds the smaller, and its size says which one it is.
        count = torch.maximum(above.sum(dim=1), canvas.quota())
        return best(canvas.confidence, canvas.masked, count)
