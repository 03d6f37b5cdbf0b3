"""int8 products by group: the kernel, its reference, and what they approximate."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_dllm.ops import int8_groups
from vllm_dllm.ops.int8_groups import (
    Int8Rows,
    multiply_groups,
    multiply_groups_torch,
    quantize,
)

SHAPES = [
    # Groups, outputs, inputs, rows.
    (1, 4, 1, 1),
    (3, 8, 64, 2),
    (5, 12, 100, 17),
    (4, 132, 200, 33),
    (6, 72, 2048, 64),
]


def made(shape: tuple[int, int, int, int]) -> tuple[torch.Tensor, ...]:
    groups, outputs, inputs, rows = shape
    draw = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(groups, outputs, inputs, generator=draw)
    x = torch.randn(rows, inputs, generator=draw) * 9
    group = torch.randint(groups, (rows,), generator=draw)
    return weight, x, group.bincount(minlength=groups)


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_and_reference_agree(shape: tuple[int, int, int, int]) -> None:
    """Sums are of whole numbers: the tail of a row, a group without rows, or a tile
    that is not full would give other ones."""
    weight, x, counts = made(shape)
    weights, rows = quantize(weight), quantize(x)
    sums = weights.values.sum(dim=-1, dtype=torch.int32)
    found = multiply_groups(rows, counts, weights, sums)
    assert torch.equal(found, multiply_groups_torch(rows, counts, weights))


def test_extreme_values_do_not_overflow() -> None:
    """128 is added to inputs inside of the kernel, which a byte must hold."""
    values = torch.full((1, 4, 4096), -127, dtype=torch.int8)
    weights = Int8Rows(values, torch.ones(1, 4))
    rows = Int8Rows(values[0, :2], torch.ones(2))
    sums = values.sum(dim=-1, dtype=torch.int32)
    found = multiply_groups(rows, torch.tensor([2]), weights, sums)
    assert found.tolist() == [[127.0 * 127 * 4096] * 4] * 2


def test_products_are_near_those_of_the_numbers() -> None:
    """A scale of another row or output would be far off."""
    weight, x, counts = made((4, 32, 256, 40))
    weights = quantize(weight)
    sums = weights.values.sum(dim=-1, dtype=torch.int32)
    found = multiply_groups(quantize(x), counts, weights, sums)
    exact = torch.cat(
        [part @ w.t() for part, w in zip(x.split(counts.tolist()), weight, strict=True)]
    )
    assert (found - exact).norm() < 0.02 * exact.norm()


def test_zeros_stay_zeros() -> None:
    """A scale of zero would make them no numbers."""
    rows = quantize(torch.zeros(2, 8))
    assert rows.values.count_nonzero() == 0 and rows.scale.tolist() == [1, 1]


class Largest(TorchDispatchMode):
    """Keeps the bytes of the largest tensor that is made within."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.found = max(self.found, result.nbytes)
        return result


@pytest.mark.parametrize("shape", [(300, 70), (5, 60, 70), (2, 30000)])
def test_large_weights_are_quantized_in_parts(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head in float32, several times over, is more than all layers in int8; and a
    part with the scale of another is another weight."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    whole = quantize(weight)
    monkeypatch.setattr(int8_groups, "AT_ONCE", 5000)
    with Largest() as largest:
        parts = quantize(weight)
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(parts.scale, whole.scale)
    assert largest.found <= max(weight.numel(), 4 * 5000, 4 * weight[0].numel())
