"""Dream's times, by hand."""

import torch


def share_by_hand(steps: int, eps: float, step: int) -> float:
    """Share of the masks that a step decides."""
    if step >= steps - 1:
        return 1.0
    times = torch.linspace(1, eps, steps + 1)
    return float(1 - times[step + 1] / times[step])
