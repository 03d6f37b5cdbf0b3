"""Dense boolean attention masks for the reference models (True means "may see")."""

import torch
from torch import Tensor


def block_causal(length: int, block: int, device: torch.device | None = None) -> Tensor:
    """Query i sees key j iff j // block <= i // block.

    Returns:
        mask: [length, length] bool, rows are queries; blocks lie on the absolute grid.
    """
    index = torch.arange(length, device=device) // block
    return index[None, :] <= index[:, None]
