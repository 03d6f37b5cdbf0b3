"""entropy_bounded: the most settled positions while their entropies sum to little.

Source: JetEngine's `entropy_bounded` for SDAR. With the entropies of the masks in
rising order e_1 <= e_2 <= ..., the first k positions become tokens, where k is the
number of sums e_1 + ... + e_j below the bound (strict), and at least 1.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class EntropyBounded(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"entropy_bound"})
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.entropy is not None
        rising = canvas.entropy.masked_fill(~canvas.masked, float("inf")).sort(dim=1)
        # A GPU adds in an order that depends on the number of rows; in float64 that
        # makes no difference that float32 entropies could show.
        total = rising.values.double().cumsum(dim=1)
        bound = canvas.params["entropy_bound"].unsqueeze(1)
        count = (total < bound).sum(dim=1).clamp(min=1)
        count = torch.minimum(count, canvas.masked.sum(dim=1))
        return best(-canvas.entropy, canvas.masked, count)
