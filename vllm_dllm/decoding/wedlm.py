"""wedlm: positions that are settled, the sooner the nearer to what is known.

Source: WeDLM. With the entropies e_i (nats) of the masks and the first mask f, a
position scores e_i + pos_penalty_factor * (i - f). Every position with a score below
entropy_threshold (strict) becomes a token; if there is none, the one with the lowest
score does.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class WeDLM(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"entropy_threshold", "pos_penalty_factor"}
    )
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.entropy is not None
        masked, width = canvas.masked, canvas.masked.shape[1]
        column = torch.arange(width, device=masked.device).expand_as(masked)
        first = column.masked_fill(~masked, width).amin(dim=1, keepdim=True)
        params = {name: value.unsqueeze(1) for name, value in canvas.params.items()}
        score = canvas.entropy + params["pos_penalty_factor"] * (column - first)
        settled = masked & (score < params["entropy_threshold"])
        must = masked.any(dim=1) & ~settled.any(dim=1)
        return settled | best(-score, masked, must.long())
