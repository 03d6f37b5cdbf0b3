"""Muon for stacks of matrices: momentum, then orthogonalised updates."""

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(update: Tensor, iterations: int = 5) -> Tensor:
    """Newton-Schulz towards the nearest semi-orthogonal matrices, [count, m, n]."""
    tall = update.shape[1] > update.shape[2]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum SGD on matrices [m, n] or stacks [count, m, n]."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float,
        decay: float,
        dtype: torch.dtype,
    ) -> None:
        """`dtype` is what updates are orthogonalised in."""
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(state["momentum"], group["momentum"])
                update = update.reshape(-1, *param.shape[-2:]).to(self.dtype)
                update = orthogonalise(update)
                scale = max(1.0, param.shape[-2] / param.shape[-1]) ** 0.5
                param.mul_(1 - group["lr"] * group["decay"])
                param.add_(update.view_as(param), alpha=-group["lr"] * scale)
