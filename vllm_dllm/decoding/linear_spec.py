"""linear_spec: the tokens of the autoregressive model.

Source: Nemotron-Labs-Diffusion `linear_spec_generate`, which drafts a block and keeps
of it what the causal model says as well: its answer is that of the causal model,
whatever `threshold` and block length the drafts are made with. Here none are made: each
token is the seed of a block of one, at one forward a token.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule


class LinearSpec(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"threshold"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        return canvas.masked & (canvas.masked.cumsum(dim=1) == 1)
