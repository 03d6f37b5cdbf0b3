"""A LoRA adapter (PEFT) merged into the checkpoint that it was trained on.

    pip install peft
    python tools/merge_lora.py LLaDA-8B-Instruct D2F-LoRA merged

The merged folder is served as any checkpoint. No code of the model is run: PEFT merges
linear layers that are made of the weights alone, one file of them at a time.
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

PREFIX = "base_model.model."
"""Of names in an adapter, before those of the model."""
PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
"""What an adapter may have of a linear layer."""

State = dict[str, torch.Tensor]


def modules_of(adapter: State) -> dict[str, State]:
    """Names of the layers that an adapter changes, and its tensors of each."""
    found: dict[str, State] = {}
    for name, tensor in adapter.items():
        part = next((part for part in PARTS if name.endswith(f".{part}")), None)
        if part is None or not name.startswith(PREFIX):
            raise SystemExit(
                f"the adapter's {name} is no part of a linear layer; supported: "
                f"{', '.join(PARTS)}"
            )
        module = name.removeprefix(PREFIX).removesuffix(f".{part}")
        found.setdefault(module, {})[name] = tensor
    return found


def skeleton(tensors: State, modules: Iterable[str]) -> nn.Module:
    """A model of these linear layers alone, under their names."""
    root = nn.Module()
    for module in modules:
        *path, last = module.split(".")
        parent = root
        for name in path:
            if not hasattr(parent, name):
                parent.add_module(name, nn.Module())
            parent = getattr(parent, name)
        weight = tensors[f"{module}.weight"]
        outputs, inputs = weight.shape
        layer = nn.Linear(inputs, outputs, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        parent.add_module(last, layer)
    return root


def merged(tensors: State, folder: Path, modules: dict[str, State]) -> State:
    """The tensors of a file of the checkpoint, after the adapter in `folder`."""
    config = PeftConfig.from_pretrained(str(folder))
    # The layers are named below; and there is no model that could generate.
    config.task_type = config.layers_to_transform = config.layers_pattern = None
    config.target_modules, config.exclude_modules = set(modules), None
    config.inference_mode = True
    model = PeftModel(skeleton(tensors, modules), config)
    own = {name: each for parts in modules.values() for name, each in parts.items()}
    set_peft_model_state_dict(model, own)
    whole = model.merge_and_unload(safe_merge=True)
    changed = {f"{m}.weight": whole.get_submodule(m).weight.data for m in modules}
    return {name: changed.get(name, each) for name, each in tensors.items()}


def refuse_another(base: Path, files: list[Path], modules: dict[str, State]) -> None:
    """End before anything is written if the checkpoint lacks a layer."""
    names: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            names |= set(opened.keys())
    if missing := [module for module in modules if f"{module}.weight" not in names]:
        raise SystemExit(
            f"{base} has no {missing[0]}.weight, nor {len(missing) - 1} more layers "
            "that the adapter changes: it was trained on another model"
        )


def merge(base: Path, adapter: Path, target: Path) -> int:
    """Write the merged checkpoint; returns how many layers were changed."""
    modules = modules_of(load_peft_weights(str(adapter), device="cpu"))
    files = sorted(base.glob("*.safetensors"))
    refuse_another(base, files, modules)
    for file in files:
        tensors = load_file(file)
        here = {m: s for m, s in modules.items() if f"{m}.weight" in tensors}
        if here:
            tensors = merged(tensors, adapter, here)
        save_file(
            {name: each.contiguous() for name, each in tensors.items()},
            target / file.name,
            metadata={"format": "pt"},
        )
        print(f"{target / file.name}: {len(here)} layers merged")
    for path in base.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, target / path.name)
    return len(modules)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, help="folder of the checkpoint")
    parser.add_argument("adapter", type=Path, help="folder of the adapter")
    parser.add_argument("target", type=Path, help="a new folder")
    args = parser.parse_args(arguments)
    if not list(args.base.glob("*.safetensors")):
        raise SystemExit(f"{args.base} has no *.safetensors")
    if not (args.adapter / "adapter_config.json").is_file():
        raise SystemExit(f"{args.adapter} has no adapter_config.json")
    if args.target.exists() and any(args.target.iterdir()):
        raise SystemExit(f"{args.target} is not empty; give a new folder")
    args.target.mkdir(parents=True, exist_ok=True)
    print(f"{merge(args.base, args.adapter, args.target)} layers merged in all")


if __name__ == "__main__":
    main()
