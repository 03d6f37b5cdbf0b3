"""The best token of each row of logits, and the model's confidence in it."""

import torch

from vllm_dllm.ops import extension


def candidates(
    logits: torch.Tensor, mask_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token that is not the mask, and its probability.

    Args:
        logits: [rows, vocab], any float dtype, last dimension contiguous. The mask's
            column may be overwritten.
        mask_token_id: the token that may not be chosen; it has probability 0.

    Returns:
        token: [rows] int64; the lowest id among equals on CPU.
        confidence: [rows] float32, softmax(logits)[token] computed in float32.
    """
    native = extension.load() if logits.device.type == "cpu" else None
    if native is None or logits.dtype not in (torch.float32, torch.bfloat16):
        return candidates_torch(logits, mask_token_id)
    num_rows, vocab = logits.shape
    token = torch.empty(num_rows, dtype=torch.int64)
    confidence = torch.empty(num_rows, dtype=torch.float32)
    native.candidates(
        num_rows,
        vocab,
        logits.element_size(),
        logits.data_ptr(),
        logits.stride(0),
        mask_token_id,
        token.data_ptr(),
        confidence.data_ptr(),
    )
    return token, confidence


def candidates_torch(
    logits: torch.Tensor, mask_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in torch operations."""
    logits[:, mask_token_id] = float("-inf")
    top, token = logits.max(dim=-1)
    confidence = (top.float() - logits.float().logsumexp(dim=-1)).exp()
    return token, confidence
