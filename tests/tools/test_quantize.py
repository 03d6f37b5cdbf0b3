"""tools/quantize.py: what it writes; tests/models/test_completeness.py loads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import derived, in_shards
from tests.golden_cases import GOLDEN
from tools.quantize import main

BASE = GOLDEN / "llada20-pub0"


def quantized(
    target: Path, base: Path = BASE, *options: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of what the tool makes of `base`."""
    main([str(base), str(target), *options])
    found: dict[str, torch.Tensor] = {}
    for path in target.glob("*.safetensors"):
        found |= load_file(path)
    return found, json.loads((target / "config.json").read_text())


def test_weights_are_near_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    """Prevents a router, a norm or an embedding that is rounded, which vLLM would
    read as if it was not; and a scale of another row."""
    found, config = quantized(tmp_path / "int8")
    made = set()
    for name, weight in load_file(BASE / "model.safetensors").items():
        scale = found.pop(f"{name}_scale", None)
        if scale is None:
            assert torch.equal(found.pop(name), weight), name
            continue
        made.add(name.split(".")[-2])
        values = found.pop(name)
        assert values.dtype == torch.int8
        assert ((values * scale - weight.float()).abs() <= scale / 2 * 1.001).all()
    assert not found
    assert made == {
        *("query_key_value", "dense", "lm_head"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    [group] = config["quantization_config"]["config_groups"].values()
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"]["dynamic"]


def test_layers_may_be_in_several_files(tmp_path: Path) -> None:
    """Prevents layers that are left out because another file holds them."""
    whole, _ = quantized(tmp_path / "whole")
    base = derived(tmp_path / "base", str(BASE))
    in_shards(base, load_file(BASE / "model.safetensors"))
    parts, _ = quantized(tmp_path / "parts", base)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    index = json.loads((tmp_path / "parts/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()


def test_a_head_that_is_to_stay_stays(tmp_path: Path) -> None:
    """Prevents a flag without an effect, and a config that says another thing."""
    found, config = quantized(tmp_path / "int8", BASE, "--keep-head")
    assert "lm_head.weight_scale" not in found
    [group] = config["quantization_config"]["config_groups"].values()
    assert "lm_head" not in group["targets"]


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    """Prevents int8 of what is int8, and the files of two checkpoints in a folder."""
    quantized(tmp_path / "int8")
    with pytest.raises(SystemExit, match="is quantized already"):
        main([str(tmp_path / "int8"), str(tmp_path / "again")])
    with pytest.raises(SystemExit, match="is not empty"):
        main([str(BASE), str(tmp_path / "int8")])
    with pytest.raises(SystemExit, match=r"has no \*\.safetensors"):
        main([str(tmp_path), str(tmp_path / "new")])
