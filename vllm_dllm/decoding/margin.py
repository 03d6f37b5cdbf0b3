"""margin: a fixed number of tokens per step, the least contested first.

As low_confidence, but the n_k positions of a step are those with the largest
p_i(first) - p_i(second), the lead of the best token over the second best: the measure
of Dream's `topk_margin`, on LLaDA's schedule of n_k.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule


class Margin(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"steps"})
    needs: ClassVar[frozenset[str]] = frozenset({"margin"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.margin is not None
        return canvas.best_of_quota(canvas.margin)
