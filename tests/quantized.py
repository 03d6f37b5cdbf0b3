"""Quantized copies of checkpoints, in the formats of the tools that people use."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.checkpoints import derived

GROUP = 32
"""Inputs that share a scale, with 4 bits."""
NIBBLES = 8
"""Values of 4 bits in an int32."""
Parts = dict[str, Tensor]
"""What a format makes of a weight, by the end of its name."""


def rounded(weight: Tensor, group: int, largest: int) -> tuple[Tensor, Tensor]:
    """[out, groups, group] whole numbers up to `largest`, and a scale of each group."""
    groups = weight.float().unflatten(1, (-1, group))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-8) / largest
    scale = scale.bfloat16().float()
    return (groups / scale).round().clamp(-largest - 1, largest), scale


def packed(values: Tensor) -> Tensor:
    """[rows, columns] of 4 bits to [rows, columns / 8] int32, the first one lowest."""
    words = torch.zeros(len(values), values.shape[1] // NIBBLES, dtype=torch.int32)
    for place in range(NIBBLES):
        words |= values[:, place::NIBBLES].int() << (4 * place)
    return words


def int4(weight: Tensor) -> Parts:
    values, scale = rounded(weight, GROUP, 7)
    return {
        "weight_packed": packed(values.flatten(1) + 8),
        "weight_scale": scale.squeeze(-1).bfloat16(),
        "weight_shape": torch.tensor(weight.shape),
    }


def gptq(weight: Tensor) -> Parts:
    outputs, inputs = weight.shape
    values, scale = rounded(weight, GROUP, 7)
    zeros = torch.full((inputs // GROUP, outputs), 7)  # one less than the middle
    return {
        "qweight": packed(values.flatten(1) + 8).t(),
        "scales": scale.squeeze(-1).t().bfloat16(),
        "qzeros": packed(zeros),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }


def awq(weight: Tensor) -> Parts:
    outputs, inputs = weight.shape
    values, scale = rounded(weight, GROUP, 7)
    zeros = torch.full((inputs // GROUP, outputs), 8)
    return {
        "qweight": packed(interleaved(values.flatten(1).t() + 8)),
        "scales": scale.squeeze(-1).t().bfloat16(),
        "qzeros": packed(interleaved(zeros)),
    }


def interleaved(values: Tensor) -> Tensor:
    """Columns in AWQ's order: of each eight the even ones first."""
    eights = values.unflatten(1, (-1, NIBBLES))
    return eights[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1)


def config_of(scheme: Callable[[Tensor], Parts], plain: list[str]) -> dict[str, Any]:
    """`quantization_config` of a checkpoint; modules in `plain` stay as they are."""
    if scheme is int4:
        bits = {"type": "int", "num_bits": 4, "symmetric": True, "dynamic": False}
        weights = {**bits, "strategy": "group", "group_size": GROUP}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": plain,
        }
    if scheme is awq:
        config = {"bits": 4, "group_size": GROUP, "zero_point": True}
        return {"quant_method": "awq", "modules_to_not_convert": plain, **config}
    dynamic = {f"-:{re.escape(name)}": {} for name in plain}
    config = {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    return {"quant_method": "gptq", "dynamic": dynamic, **config}


def quantized(
    folder: Path, base: Path, scheme: Callable[[Tensor], Parts], plain: str
) -> Path:
    """A copy of `base` with its linear layers quantized, into `folder`.

    Args:
        plain: a pattern of names of weights that stay as they are.
    """
    weights: Parts = {}
    left: list[str] = []
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if weight.ndim == 2 and not re.search(plain, name):
            parts = scheme(weight).items()
            weights |= {f"{module}.{end}": part for end, part in parts}
        else:
            weights[name] = weight
            left += [module] if weight.ndim == 2 else []
    config = config_of(scheme, left)
    return derived(folder, str(base), weights, quantization_config=config)
