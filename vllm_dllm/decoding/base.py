"""What a decoding rule is given and what it answers. Torch only, no vLLM."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch


@dataclass
class CanvasStep:
    """One step of `n` requests that share a rule; row i is the block of request i.

    `block` is the diffusion block size; columns are positions of that block.
    """

    # Filled by the sampler from the canvas.
    masked: torch.Tensor
    """[n, block] bool: positions that are still masks. At least one in each row."""
    step: torch.Tensor
    """[n] int64: steps this block has already taken."""

    # Filled by the sampler from the logits; undefined where `masked` is False.
    confidence: torch.Tensor
    """[n, block] float32: probability of the best token that is not the mask."""

    # Filled from the request's parameters.
    threshold: torch.Tensor
    """[n] float32 in [0, 1]."""
    steps: torch.Tensor
    """[n] int64 >= 1: steps in which a whole block is to be decoded."""

    @property
    def block(self) -> int:
        return self.masked.shape[1]

    def quota(self) -> torch.Tensor:
        """Number of positions that this step must decode, at most all masked ones.

        A block of B positions in s steps: B div s in each, one more in the first
        B mod s (LLaDA's `get_num_transfer_tokens`). Past the last step nothing may
        stay masked.

        Returns:
            [n] int64 tensor.
        """
        base = self.block // self.steps
        extra = self.step < self.block % self.steps
        count = self.masked.sum(dim=1)
        quota = torch.minimum(base + extra, count)
        return torch.where(self.step < self.steps, quota, count)


class DecodingRule(Protocol):
    """Chooses the masked positions that become their candidate tokens."""

    parameters: ClassVar[frozenset[str]]
    """The fields of `DllmParams` that change what this rule does."""

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        """Positions that become tokens in this step.

        Returns:
            [n, block] bool tensor, a subset of `canvas.masked`.
        """
        ...


def best(score: torch.Tensor, among: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The `count[i]` positions of row i with the highest score.

    Ties go to the lower position, on every device.

    Args:
        score: [n, block] float tensor.
        among: [n, block] bool tensor: positions that may be chosen.
        count: [n] int64 tensor, at most the number of `among` in its row.

    Returns:
        [n, block] bool tensor.
    """
    score = score.masked_fill(~among, float("-inf"))
    order = score.sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return rank < count.unsqueeze(1)
