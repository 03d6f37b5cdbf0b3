"""Soft tokens: embeddings between that of a token and that of the mask."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

EPSILON = 1e-6


def mix(embeddings: torch.Tensor, masks: torch.Tensor, share: torch.Tensor) -> None:
    """Mix rows of embeddings with the mask's, in place.

    A row e with share p becomes m = p e + (1 - p) mask, scaled to the length
    p |e| + (1 - p) |mask|, in float32: times that, over |m| + 1e-6. On a GPU by the
    kernel of mixture_triton.py.

    Args:
        embeddings: [rows, hidden], any float dtype, last dimension contiguous.
        masks: [1, hidden] or [rows, hidden], the same: the mask's, for all rows or for
            each.
        share: [rows] float32: 0 to 1; below 0, the row is left as it is.
    """
    if embeddings.is_cuda and (kernels := triton_kernels()) is not None:
        kernels.mix(embeddings, masks, share)
    else:
        mix_torch(embeddings, masks, share)


@cache
def triton_kernels() -> ModuleType | None:
    """mixture_triton.py, or None where Triton is not installed."""
    try:
        return import_module("vllm_dllm.ops.mixture_triton")
    except ImportError:
        return None


def mix_torch(
    embeddings: torch.Tensor, masks: torch.Tensor, share: torch.Tensor
) -> None:
    """`mix` in torch operations."""
    token, other, part = embeddings.float(), masks.float(), share.unsqueeze(1)
    mixed = part * token + (1 - part) * other
    wanted = part * length_of(token) + (1 - part) * length_of(other)
    mixed *= wanted / (length_of(mixed) + EPSILON)
    embeddings.copy_(torch.where(part < 0, token, mixed))


def length_of(rows: torch.Tensor) -> torch.Tensor:
    """[..., hidden] -> [..., 1]: Euclidean length."""
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
