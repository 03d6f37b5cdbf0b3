"""sequential in a window that slides: the leftmost mask becomes a token."""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule


class Leftmost(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset()

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        return canvas.masked & (canvas.masked.cumsum(dim=1) == 1)
