"""tools/merge_lora.py on a golden checkpoint and a small adapter."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters import ALPHA, RANK, make_adapter
from tests.golden_cases import GOLDEN
from tools.merge_lora import main

BASE = "llada-pub0"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    make_adapter(tmp_path / "adapter", BASE, 1, ("q_proj", "ff_out"))
    return tmp_path / "adapter"


def merge(adapter: Path, base: Path = GOLDEN / BASE) -> dict[str, torch.Tensor]:
    target = adapter.parent / "merged"
    main([str(base), str(adapter), str(target)])
    assert {p.name for p in target.iterdir()} == {p.name for p in base.iterdir()}
    found = {}
    for path in target.glob("*.safetensors"):
        found |= load_file(path)
    return found


def check(found: dict, scale: float, adapter: Path) -> None:
    """Each layer of the adapter has its part, and no other tensor is another."""
    parts = load_file(adapter / "adapter_model.safetensors")
    base = load_file(GOLDEN / BASE / "model.safetensors")
    assert found.keys() == base.keys()
    for name, weight in base.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        assert found[name].dtype == weight.dtype
        if f"{module}.lora_A.weight" not in parts:
            assert torch.equal(found[name], weight), name
            continue
        up, down = parts[f"{module}.lora_B.weight"], parts[f"{module}.lora_A.weight"]
        torch.testing.assert_close(found[name], weight + scale * (up @ down))
        assert not torch.equal(found[name], weight)


def change_config(adapter: Path, **fields: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_weights_are_those_with_the_adapter(adapter: Path) -> None:
    """Prevents a merged checkpoint that answers as the base."""
    check(merge(adapter), ALPHA / RANK, adapter)


def test_the_adapters_own_scale_is_used(adapter: Path) -> None:
    """Prevents a strength that nobody trained with."""
    change_config(adapter, use_rslora=True)
    check(merge(adapter), ALPHA / RANK**0.5, adapter)


def test_layers_may_be_in_several_files(adapter: Path) -> None:
    """Prevents layers that are left out because another file holds them."""
    base = adapter.parent / "base"
    base.mkdir()
    tensors = load_file(GOLDEN / BASE / "model.safetensors")
    for number in range(2):
        part = {n: tensors[n] for n in sorted(tensors)[number::2]}
        save_file(part, base / f"model-{number}.safetensors", {"format": "pt"})
    (base / "config.json").write_text("{}")
    check(merge(adapter, base), ALPHA / RANK, adapter)


def test_an_adapter_of_another_model_is_refused(adapter: Path) -> None:
    """Prevents a checkpoint with a part of an adapter in it."""
    target = adapter.parent / "other"
    with pytest.raises(SystemExit, match=r"has no .*trained on another model"):
        main([str(GOLDEN / "dream-pub0"), str(adapter), str(target)])
    assert not list(target.iterdir())


def test_what_is_no_linear_layer_is_refused(adapter: Path) -> None:
    """Prevents an embedding or a saved module that is dropped without a word."""
    file = adapter / "adapter_model.safetensors"
    odd = {"base_model.model.wte.lora_embedding_A": torch.zeros(2, 2)}
    save_file(load_file(file) | odd, file)
    with pytest.raises(SystemExit, match="lora_embedding_A is no part"):
        merge(adapter)


def test_a_folder_in_use_is_left_alone(adapter: Path) -> None:
    """Prevents the files of two checkpoints in one folder."""
    with pytest.raises(SystemExit, match="is not empty"):
        main([str(GOLDEN / BASE), str(adapter), str(adapter)])
