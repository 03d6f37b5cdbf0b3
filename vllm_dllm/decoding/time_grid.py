"""Dream's rules: how many tokens a step decodes follows a grid of times.

Source: Dream `diffusion_generate`. Time falls from 1 to `eps` in equal steps; a step
from t to s decodes int(m * (1 - s / t)) of the m masks, the last step all of them. A
step may decode none. Which ones is said by a score, the highest first; with
`alg_temp` > 0 they are drawn without replacement from softmax(score / alg_temp).
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


def time_grid(steps: int, eps: float) -> torch.Tensor:
    """Share of the masks that each step decides: 1 - s / t, and all in the last.

    Dream's `diffusion_generate`: time falls from 1 to `eps` in `steps` equal steps, and
    a step goes from t to s. float32 throughout, as there: rounding decides how many
    tokens a step takes. With `eps` 0, where there is nothing to round, exactly one of
    the steps that are left.

    Returns:
        [steps] float32.
    """
    if eps == 0:
        return 1 / torch.arange(steps, 0, -1)
    time = torch.linspace(1, eps, steps + 1)
    share = 1 - time[1:] / time[:-1]
    share[-1] = 1.0
    return share


class TimeGrid(SelectingRule):
    """Base of the rules that have a score."""

    parameters: ClassVar[frozenset[str]] = frozenset({"steps", "eps", "alg_temp"})
    needs: ClassVar[frozenset[str]] = frozenset({"time", "noise"})

    def score(self, canvas: CanvasStep) -> torch.Tensor:
        """[n, block] float32: how sure a position is."""
        raise NotImplementedError

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.time is not None and canvas.noise is not None
        # float32 throughout, as the source: rounding decides the count.
        count = (canvas.masked.sum(dim=1).float() * canvas.time).long()
        score = self.score(canvas)
        temperature = canvas.params["alg_temp"].unsqueeze(1)
        # The k highest of score / T + Gumbel noise are k draws from its softmax without
        # replacement. A uniform number of 0 would give an infinite one.
        uniform = canvas.noise.clamp(min=torch.finfo(torch.float32).tiny)
        drawn = score / temperature - (-uniform.log()).log()
        return best(torch.where(temperature > 0, drawn, score), canvas.masked, count)


class MaskgitPlus(TimeGrid):
    """maskgit_plus: the probability of the candidate."""

    def score(self, canvas: CanvasStep) -> torch.Tensor:
        return canvas.confidence


class TopkMargin(TimeGrid):
    """topk_margin: the lead of the best token over the second best."""

    needs: ClassVar[frozenset[str]] = TimeGrid.needs | {"margin"}

    def score(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.margin is not None
        return canvas.margin


class NegEntropy(TimeGrid):
    """neg_entropy (Dream's `entropy`): sum_v p(v) ln p(v)."""

    needs: ClassVar[frozenset[str]] = TimeGrid.needs | {"entropy"}

    def score(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.entropy is not None
        return -canvas.entropy


class Origin(SelectingRule):
    """origin: each mask by itself, with probability 1 - s / t."""

    parameters: ClassVar[frozenset[str]] = frozenset({"steps", "eps"})
    needs: ClassVar[frozenset[str]] = frozenset({"time", "noise"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        assert canvas.time is not None and canvas.noise is not None
        return canvas.masked & (canvas.noise < canvas.time.unsqueeze(1))
