"""tools/dcp_to_hf.py on the bundled model, saved as a distributed checkpoint."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from tools.dcp_to_hf import main

MODEL = Path(__file__).parents[2] / "models" / "tiny-llada2"


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(MODEL / "model.safetensors")


@pytest.fixture(scope="module")
def checkpoint(tensors, tmp_path_factory) -> Path:
    """What a trainer saves: the model under a name of its own, and more."""
    folder = tmp_path_factory.mktemp("dcp") / "step-1"
    momenta = {key: torch.zeros_like(each) for key, each in tensors.items()}
    state = {"model": tensors, "optimizer": momenta, "step": 1}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def convert(checkpoint: Path, target: Path, *options: str) -> dict[str, torch.Tensor]:
    main([str(checkpoint), str(target), "--config", str(MODEL), *options])
    found = {}
    for path in sorted(target.glob("*.safetensors")):
        found |= load_file(path)
    return found


def check_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, each in expected.items():
        assert found[key].dtype == each.dtype, key
        assert torch.equal(found[key], each), key


def test_tensors_are_those_that_were_saved(checkpoint, tensors, tmp_path) -> None:
    """Prevents renamed, lost or changed weights, which serve nonsense."""
    target = tmp_path / "hf"
    check_same(convert(checkpoint, target, "--strip-prefix", "model."), tensors)
    assert [path.name for path in target.glob("*.safetensors")] == ["model.safetensors"]


def test_every_other_file_of_the_config_folder_is_there(checkpoint, tmp_path) -> None:
    """Prevents a folder that no library can load."""
    from transformers import AutoTokenizer, PretrainedConfig

    target = tmp_path / "hf"
    convert(checkpoint, target, "--strip-prefix", "model.")
    names = {path.name for path in target.iterdir()}
    assert names == {path.name for path in MODEL.iterdir()}
    config = PretrainedConfig.from_pretrained(target)
    assert config.architectures == ["LLaDA2MoeModelLM"]
    assert AutoTokenizer.from_pretrained(target).encode("12 + 30")


def test_large_models_are_split_and_indexed(checkpoint, tensors, tmp_path) -> None:
    """Prevents files above the size, and an index that does not name every tensor."""
    target = tmp_path / "hf"
    options = ("--strip-prefix", "model.", "--max-shard-size", "1MB")
    check_same(convert(checkpoint, target, *options), tensors)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    files = {path.name: path.stat().st_size for path in target.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files.keys()
    assert len(files) > 1
    assert max(files.values()) < 1_100_000
    total = sum(each.nbytes for each in tensors.values())
    assert index["metadata"]["total_size"] == total


def test_another_dtype_is_that_of_tensors_and_config(
    checkpoint, tensors, tmp_path
) -> None:
    """Prevents a server that reads float32 tensors as bfloat16 because config.json
    says so."""
    target = tmp_path / "hf"
    found = convert(
        checkpoint, target, "--strip-prefix", "model.", "--dtype", "float32"
    )
    check_same(found, {key: each.float() for key, each in tensors.items()})
    config = json.loads((target / "config.json").read_text())
    assert config["torch_dtype"] == "float32"


def test_without_a_prefix_names_stay(checkpoint, tensors, tmp_path) -> None:
    """Prevents silent renaming."""
    found = convert(checkpoint, tmp_path / "hf")
    assert {key for key in found if key.startswith("model.")} == {
        f"model.{key}" for key in tensors
    }


def test_mistakes_are_named(checkpoint, tmp_path) -> None:
    """Prevents a traceback from torch where the user gave the wrong folder."""
    target = tmp_path / "hf"
    with pytest.raises(SystemExit, match=r"no file \.metadata"):
        convert(MODEL, target)
    with pytest.raises(SystemExit, match=r"no tensor begins with 'ema\.'; there are: "):
        convert(checkpoint, target, "--strip-prefix", "ema.")
    with pytest.raises(SystemExit, match=r"no config\.json in it"):
        main([str(checkpoint), str(target), "--config", str(checkpoint)])
    (target / "old").touch()
    with pytest.raises(SystemExit, match="is not empty"):
        convert(checkpoint, target)
