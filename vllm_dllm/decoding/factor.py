"""factor: the more tokens at once, the surer each of them has to be.

Source: Fast-dLLM `get_transfer_index_dynamic`. With the confidences of the m masks in
falling order c_1 >= c_2 >= ... >= c_m and the factor f, scan for the first n > 1 with
c_n < 1 - f / (n + 1) (strict). The n - 1 positions before it become tokens, all m if
there is none. An off-by-one of the source is kept, as its published numbers have it:
a scan that stops at n = m takes the m-th too, so c_m never matters.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class Factor(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"factor"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        masks = canvas.masked.sum(dim=1, keepdim=True)
        falling = canvas.confidence.masked_fill(~canvas.masked, float("-inf"))
        falling = falling.sort(dim=1, descending=True).values
        n = torch.arange(1, falling.shape[1] + 1, device=falling.device)
        # The source has its bounds in float64.
        bound = 1 - canvas.params["factor"].double().unsqueeze(1) / (n + 1)
        stops = (falling < bound) & (n > 1) & (n < masks)
        count = torch.where(stops, n - 1, masks).amin(dim=1)
        return best(canvas.confidence, canvas.masked, count)
