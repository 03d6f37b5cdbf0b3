"""A LoRA adapter of random weights, as PEFT saves them."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

RANK, STRENGTH = 4, 0.05


def make_adapter(folder: Path, checkpoint: Path, layers: tuple[str, ...]) -> None:
    """One of all matrices of the checkpoint whose name ends with one of `layers`."""
    generator = torch.Generator().manual_seed(len(layers))
    parts: dict[str, torch.Tensor] = {}
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            module = name.removesuffix(".weight")
            if module.endswith(layers):
                outputs, inputs = weights.get_slice(name).get_shape()
                down = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
                up = torch.randn(outputs, RANK, generator=generator) * STRENGTH
                parts[f"base_model.model.{module}.lora_A.weight"] = down
                parts[f"base_model.model.{module}.lora_B.weight"] = up
    save_adapter(folder, parts, RANK, 2 * RANK)


def save_adapter(
    folder: Path, parts: dict[str, torch.Tensor], rank: int, alpha: int
) -> None:
    """Make a folder of the weights of an adapter, by their names in PEFT's files."""
    folder.mkdir(parents=True)
    save_file(parts, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({name.split(".")[-3] for name in parts}),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
