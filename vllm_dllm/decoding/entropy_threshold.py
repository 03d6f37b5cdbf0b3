"""entropy_threshold: every position that is settled enough, and the most settled one.

Source: d3LLM's `generate`, one block at a time. The masked position with the lowest
entropy becomes a token, and so do those with e_i <= `entropy_threshold` (not strict).
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class EntropyThreshold(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"entropy_threshold"})
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.entropy is not None
        threshold = canvas.params["entropy_threshold"].unsqueeze(1)
        settled = canvas.masked & (canvas.entropy <= threshold)
        first = best(-canvas.entropy, canvas.masked, canvas.masked.any(dim=1).long())
        return settled | first
