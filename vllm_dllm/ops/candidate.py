"""The best token of each row of logits, and how sure the model is of it."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from vllm_dllm.ops import extension

TILE = 32
"""Rows that are held in float32 at a time."""


@dataclass
class Candidates:
    """A proposed token per row, and measures of it."""

    token: torch.Tensor
    """[rows] int64."""
    confidence: torch.Tensor
    """[rows] float32: its probability."""
    entropy: torch.Tensor | None = None
    """[rows] float32, nats, of the distribution."""
    margin: torch.Tensor | None = None
    """[rows] float32: the highest probability less the second highest."""
    undrawn: "Candidates | None" = None
    """The most likely tokens, where others were drawn and both are wanted."""


def candidates(
    logits: torch.Tensor, mask_token_id: int, measures: bool = False
) -> Candidates:
    """The most likely token that is not the mask, and its probability.

    On a GPU by the kernels of candidate_triton.py, on CPU by those of csrc/, and where
    these are missing in torch.

    Args:
        logits: [rows, vocab], any float dtype, last dimension contiguous. The mask's
            column may be overwritten.
        mask_token_id: the token that may not be chosen; it has probability 0.
        measures: whether entropy and margin are wanted.

    Returns:
        token (the lowest id among equals) and confidence, softmax in float32; entropy
        and margin of the same distribution if they are wanted.
    """
    if logits.is_cuda and (kernels := triton_kernels()) is not None:
        token, measured = kernels.candidates(logits, mask_token_id, measures)
        return Candidates(token, *measured)
    native = extension.load() if logits.device.type == "cpu" else None
    if native is None or logits.dtype not in (torch.float32, torch.bfloat16):
        return candidates_torch(logits, mask_token_id, measures)
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
    found = Candidates(token, confidence)
    if measures:
        logits[:, mask_token_id] = float("-inf")
        _measure(found, logits)
    return found


@cache
def triton_kernels() -> ModuleType | None:
    """candidate_triton.py, or None where Triton is not installed."""
    try:
        return import_module("vllm_dllm.ops.candidate_triton")
    except ImportError:
        return None


def candidates_torch(
    logits: torch.Tensor, mask_token_id: int, measures: bool = False
) -> Candidates:
    """`candidates` in torch operations."""
    logits[:, mask_token_id] = float("-inf")
    top, token = logits.max(dim=-1)
    sums = [tile.float().logsumexp(dim=-1) for tile in logits.split(TILE)]
    found = Candidates(token, (top.float() - torch.cat(sums)).exp())
    if measures:
        _measure(found, logits)
    return found


def _measure(found: Candidates, logits: torch.Tensor) -> None:
    """Add entropy and margin of logits [rows, vocab] without the mask."""
    tiles = [tile.float().softmax(dim=1) for tile in logits.split(TILE)]
    found.entropy = torch.cat([entropy(probs) for probs in tiles])
    found.margin = torch.cat([margin(probs) for probs in tiles])


def entropy(probs: torch.Tensor) -> torch.Tensor:
    """probs: [rows, vocab] float32 -> [rows] float32, nats."""
    return torch.special.entr(probs).sum(dim=1)


def margin(probs: torch.Tensor) -> torch.Tensor:
    """probs: [rows, vocab] float32 -> [rows] float32: best less second best."""
    top = probs.topk(min(2, probs.shape[1]), dim=1).values
    return top[:, 0] - (top[:, 1] if top.shape[1] > 1 else 0)
