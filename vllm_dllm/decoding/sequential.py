"""sequential: a fixed number of tokens per step, from left to right.

Source: SDAR `sequential`: in step k the n_k leftmost masked positions become tokens.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule


class Sequential(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"steps"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        nth_mask = canvas.masked.cumsum(dim=1)
        return canvas.masked & (nth_mask <= canvas.quota().unsqueeze(1))
