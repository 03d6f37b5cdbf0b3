"""LoRA adapters of random weights, as PEFT saves them, and what they do to a model."""

import copy
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from vllm.lora.request import LoRARequest

from tests.checkpoints import derived
from tests.golden_cases import GOLDEN, Case, Model, model_class
from tools.mix.adapter import save_adapter

RANK, ALPHA = 4, 8
STRENGTH = 0.3
"""Of its second matrices; enough for other tokens everywhere."""
ROUNDING = 1e-5
"""Adding an adapter's part to that of a weight rounds otherwise than their sum; this is
well above what that makes, relative to a weight."""
IDS = itertools.count(1)
"""vLLM knows adapters by number: of two with one number an engine has the first."""


@dataclass(frozen=True)
class Adapter:
    request: LoRARequest
    model: Model
    """The reference of the checkpoint that the adapter is merged into."""
    near: Model
    """The same, all weights off by about `ROUNDING`."""

    def settles(self, case: Case) -> bool:
        """Whether the case's answer does not hang on rounding."""
        return case.answered(self.near).tokens == case.tokens


def is_linear(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and "embed" not in name and "wte" not in name


def make_adapter(
    folder: Path,
    base: str,
    number: int,
    layers: Iterable[str],
    model: type[Model] | None = None,
) -> Adapter:
    """An adapter of all linear layers of `base` whose name has one of `layers`.

    Args:
        folder: made by this, with the adapter and the merged checkpoint.
        base: a folder of tests/golden, or another one whose `model` is told.
        number: the seed of its weights.
        layers: parts of names of the released checkpoint.
        model: the reference's class.
    """
    generator = torch.Generator().manual_seed(number)
    merged = load_file(GOLDEN / base / "model.safetensors")
    parts: dict[str, Tensor] = {}
    for name, weight in merged.items():
        if not is_linear(name, weight) or not any(part in name for part in layers):
            continue
        outputs, inputs = weight.shape
        down = torch.randn(RANK, inputs, generator=generator) / math.sqrt(inputs)
        up = torch.randn(outputs, RANK, generator=generator) * STRENGTH
        module = f"base_model.model.{name.removesuffix('.weight')}"
        parts |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        merged[name] = weight + ALPHA / RANK * (up @ down)
    save_adapter(folder, parts, RANK, ALPHA)
    checkpoint = derived(folder / "merged", base, merged)
    merged_model = (model or model_class(base)).from_pretrained(checkpoint)
    near = copy.deepcopy(merged_model)
    for weight in near.parameters():
        weight.data *= 1 + ROUNDING * torch.randn(weight.shape, generator=generator)
    request = LoRARequest(f"adapter-{number}", next(IDS), str(folder))
    return Adapter(request, merged_model, near)
