"""random: a fixed number of tokens per step, at positions drawn by lot.

Source: LLaDA `generate` (`remasking="random"`): as low_confidence, but the n_k
positions of a step are those with the largest u_i, uniform noise, drawn afresh in
every step.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule


class RandomPositions(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"steps"})
    needs: ClassVar[frozenset[str]] = frozenset({"noise"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.noise is not None
        return canvas.best_of_quota(canvas.noise)
