"""threshold: every token the model is sure of, and at least the quota of the step.

Source: LLaDA2.0 `generate`, SDAR `low_confidence_dynamic`. With the masked positions
H = {i : c_i > threshold} (strict) and the quota n_k of the step, H becomes tokens if
|H| >= n_k, else the n_k surest positions do.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule


class Threshold(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"threshold", "steps"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        # The positions above the threshold are the surest ones, so the larger of the
        # two sets holds the smaller.
        above = canvas.params["threshold"]
        return canvas.best_of_quota(canvas.confidence, above)
