"""entropy: a fixed number of tokens per step, the most settled positions first.

As low_confidence, but the n_k positions of a step are those with the lowest entropy
e_i = -sum_v p_i(v) ln p_i(v): the measure of Dream's `entropy`, on LLaDA's schedule of
n_k.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule


class Entropy(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"steps"})
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.entropy is not None
        return canvas.best_of_quota(-canvas.entropy)
