"""confidence_threshold: every token the model is sure of, and at least one.

Source: Fast-dLLM `get_transfer_index` with a threshold, Dream's `confidence_threshold`.
The surest masked position becomes a token, and so do those with c_i >= threshold (not
strict, other than LLaDA2's rule). The number of steps has no part in it.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class ConfidenceThreshold(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"threshold"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        threshold = canvas.params["threshold"].unsqueeze(1)
        sure = canvas.masked & (canvas.confidence >= threshold)
        surest = best(canvas.confidence, canvas.masked, canvas.masked.any(dim=1).long())
        return sure | surest
