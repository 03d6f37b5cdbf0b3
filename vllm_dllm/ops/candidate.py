"""The best token of each row of logits, and the model's confidence in it."""

import torch


def candidates(
    logits: torch.Tensor, mask_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token that is not the mask, and its probability.

    Args:
        logits: [rows, vocab], float of any width. The mask's column is overwritten.
        mask_token_id: the token that may not be chosen; it has probability 0.

    Returns:
        token: [rows] int64; the lowest id among equals on CPU.
        confidence: [rows] float32, softmax(logits)[token] computed in float32.
    """
    logits[:, mask_token_id] = float("-inf")
    top, token = logits.max(dim=-1)
    confidence = (top.float() - logits.float().logsumexp(dim=-1)).exp()
    return token, confidence
