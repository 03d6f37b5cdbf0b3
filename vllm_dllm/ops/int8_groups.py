"""Products in int8: rows that are grouped, each with the weights of its group."""

from dataclasses import dataclass

import torch

from vllm_dllm.ops import extension

LARGEST = 127
TILE = 4
"""Outputs that the kernel takes at a time."""
AT_ONCE = 1 << 20
"""Numbers that are quantized together: on the way they are float32, several times."""


@dataclass
class Int8Rows:
    """Rows of int8 numbers, each with what it is to be multiplied with."""

    values: torch.Tensor
    """[..., width] int8, -127 to 127."""
    scale: torch.Tensor
    """[...] float32."""


def quantize(rows: torch.Tensor) -> Int8Rows:
    """The nearest int8 numbers of each row.

    Args:
        rows: [..., width], any float dtype. A row of zeros gets the scale 1.
    """
    if rows.numel() <= AT_ONCE:
        return quantize_at_once(rows)
    values = torch.empty_like(rows, dtype=torch.int8)
    scale = rows.new_empty(rows.shape[:-1], dtype=torch.float32)
    size = max(1, AT_ONCE // rows[0].numel())
    parts = (each.split(size) for each in (rows, values, scale))
    for part, its_values, its_scale in zip(*parts, strict=True):
        made = quantize_at_once(part)
        its_values.copy_(made.values)
        its_scale.copy_(made.scale)
    return Int8Rows(values, scale)


def quantize_at_once(rows: torch.Tensor) -> Int8Rows:
    wide = rows.float()
    scale = wide.abs().amax(dim=-1) / LARGEST
    scale = torch.where(scale == 0, 1.0, scale)
    return Int8Rows((wide / scale.unsqueeze(-1)).round().to(torch.int8), scale)


def multiply_groups(
    rows: Int8Rows, counts: torch.Tensor, weights: Int8Rows, sums: torch.Tensor
) -> torch.Tensor:
    """Multiply each row with the weights of its group: exact sums, scaled once.

    By the kernel of csrc/ (AVX512-VNNI where the CPU has it), else in torch.

    Args:
        rows: [n, inputs], those of a group side by side.
        counts: [groups] int64, rows of each group; their sum is n.
        weights: [groups, outputs, inputs].
        sums: [groups, outputs] int32, of the weights of each output.

    Returns:
        [n, outputs] float32.
    """
    groups, outputs, inputs = weights.values.shape
    native = extension.load()
    if native is None or outputs % TILE:
        return multiply_groups_torch(rows, counts, weights)
    ends = counts.cumsum(0)
    x, w = rows.values.contiguous(), weights.values.contiguous()
    found = torch.empty(len(x), outputs)
    native.int8_groups(
        groups,
        inputs,
        outputs,
        ends.data_ptr(),
        x.data_ptr(),
        rows.scale.data_ptr(),
        w.data_ptr(),
        weights.scale.data_ptr(),
        sums.data_ptr(),
        found.data_ptr(),
    )
    return found


def multiply_groups_torch(
    rows: Int8Rows, counts: torch.Tensor, weights: Int8Rows
) -> torch.Tensor:
    """`multiply_groups` in torch operations."""
    parts = [
        (part.int() @ values.int().t()).float() * scale.unsqueeze(1) * by
        for part, scale, values, by in zip(
            rows.values.split(counts.tolist()),
            rows.scale.split(counts.tolist()),
            weights.values,
            weights.scale,
            strict=True,
        )
    ]
    return torch.cat(parts)
