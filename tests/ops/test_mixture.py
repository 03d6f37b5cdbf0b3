"""Soft embeddings: all implementations and float64 agree."""

import os
from collections.abc import Callable

import pytest
import torch

from vllm_dllm.ops.mixture import mix, mix_torch

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
Implementation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def by_triton(
    embeddings: torch.Tensor, masks: torch.Tensor, share: torch.Tensor
) -> None:
    """On a GPU, or on CPU in Triton's interpreter (test_mixture_triton.py)."""
    from vllm_dllm.ops import mixture_triton

    place = embeddings.cuda() if GPU else embeddings
    mixture_triton.mix(place, masks.to(place.device), share.to(place.device))
    embeddings.copy_(place)


implementations = [pytest.param(mix, id="chosen"), pytest.param(mix_torch, id="torch")]
if GPU or INTERPRETED:
    implementations.append(pytest.param(by_triton, id="triton"))
every = pytest.mark.parametrize("implementation", implementations)
every_dtype = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)],
    ids=str,
)


def by_hand(
    embeddings: torch.Tensor, masks: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """The formula, row by row in float64."""
    rows = []
    for row, (token, part) in enumerate(zip(embeddings, share.tolist(), strict=True)):
        token, mask = token.double(), masks[row % len(masks)].double()
        mixed = part * token + (1 - part) * mask
        length = part * token.norm() + (1 - part) * mask.norm()
        rows.append(token if part < 0 else mixed * length / (mixed.norm() + 1e-6))
    return torch.stack(rows)


@every
@every_dtype
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("rows", "hidden"), [(1, 1), (7, 130), (33, 128), (5, 2049)])
def test_rows_are_mixed_as_the_formula_says(
    implementation: Implementation,
    dtype: torch.dtype,
    tolerance: float,
    rows: int,
    hidden: int,
    per_row: bool,
) -> None:
    """The model would be shown a token as surer, or longer, than it is."""
    generator = torch.Generator().manual_seed(rows * hidden)
    embeddings = torch.randn(rows, hidden, generator=generator).to(dtype)
    masks = torch.randn(rows if per_row else 1, hidden, generator=generator).to(dtype)
    share = torch.rand(rows, generator=generator)
    share[::3] = -1.0
    share[1:3] = torch.tensor([0.0, 1.0])[: len(share[1:3])]
    expected = by_hand(embeddings, masks, share)
    whole = embeddings[::3].clone()
    implementation(embeddings, masks, share)
    torch.testing.assert_close(
        embeddings.double(), expected, rtol=tolerance, atol=tolerance
    )
    assert torch.equal(embeddings[::3], whole)


@every
def test_opposite_embeddings_give_no_infinity(implementation: Implementation) -> None:
    """A mixture of length 0 would be divided by it."""
    embeddings = torch.tensor([[1.0, -1.0]])
    implementation(embeddings, torch.tensor([[-1.0, 1.0]]), torch.tensor([0.5]))
    assert embeddings.tolist() == [[0.0, 0.0]]


@every
def test_no_row_is_no_work(implementation: Implementation) -> None:
    """A kernel without programs cannot be launched."""
    embeddings = torch.empty(0, 8)
    implementation(embeddings, torch.ones(1, 8), torch.empty(0))
    assert embeddings.shape == (0, 8)
