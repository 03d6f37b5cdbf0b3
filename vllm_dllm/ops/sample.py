"""A token of each row of logits, drawn from the filtered and tempered distribution."""

from dataclasses import dataclass

import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p


@dataclass
class SamplingFilters:
    """What is done to a row before a token is drawn, each [rows]."""

    temperature: torch.Tensor
    """float32; 0 takes the most likely token."""
    top_k: torch.Tensor | None
    """int64; the vocabulary size switches it off. None: no row has one, which is not to
    be asked of a device."""
    top_p: torch.Tensor | None
    """float32; 1 switches it off. None as above."""
    min_p: torch.Tensor | None
    """float32; 0 switches it off. None as above."""


def sample(
    logits: torch.Tensor, filters: SamplingFilters, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row.

    The order is vLLM's: temperature, min_p, top_k, top_p. The distribution is what
    LLaDA2 and SDAR take the confidence from.

    Args:
        logits: [rows, vocab] float32; overwritten.
        filters: of each row.
        uniform: [rows] float64 in [0, 1): the same number draws the same token.

    Returns:
        token: [rows] int64.
        probs: [rows, vocab] float32, the distribution it was drawn from; its sum is 1.
    """
    greedy = filters.temperature == 0
    logits /= torch.where(greedy, 1.0, filters.temperature).unsqueeze(1)
    if filters.min_p is not None:
        floor = logits.amax(dim=1) + filters.min_p.log()
        logits.masked_fill_(logits < floor.unsqueeze(1), float("-inf"))
    vocab = logits.shape[1]
    probs = apply_top_k_top_p(logits, filters.top_k, filters.top_p).softmax(dim=1)
    # Invert the distribution function. float64, so that no token of a large vocabulary
    # is lost to rounding; scaled by the last value, so that one is always found.
    cumulative = probs.cumsum(dim=1, dtype=torch.float64)
    target = uniform * cumulative[:, -1]
    drawn = torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
    drawn = drawn.clamp(max=vocab - 1)
    return torch.where(greedy, probs.argmax(dim=1), drawn), probs
