"""A torch distributed checkpoint (DCP) -> a Hugging Face folder of safetensors.

    python tools/dcp_to_hf.py checkpoints/step-1000 model-hf --config base-model
    python tools/dcp_to_hf.py checkpoints/step-1000 model-hf --config base-model \\
        --strip-prefix model. --dtype bfloat16 --max-shard-size 2GB

Whatever number of ranks wrote the checkpoint, one process without a GPU reads it, with
torch's own reader, and holds one output file's tensors at a time. `--config` is a
folder with config.json and the tokenizer, usually the model that training started from;
everything in it but weights is copied.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")

State = dict[str, torch.Tensor]


def outline(source: Path) -> State:
    """Every tensor of the checkpoint, without its values (on the meta device)."""
    if not (source / ".metadata").is_file():
        raise SystemExit(
            f"{source} is no distributed checkpoint: it has no file .metadata. Give "
            "the folder that holds it and the *.distcp files"
        )
    entries = dcp.FileSystemReader(source).read_metadata().state_dict_metadata
    return {
        key: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for key, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def renamed(tensors: State, prefix: str) -> dict[str, str]:
    """Names in the new checkpoint -> names in the old one, of what has the prefix."""
    names = {key.removeprefix(prefix): key for key in tensors if key.startswith(prefix)}
    if not names:
        some = ", ".join(sorted(tensors)[:5]) or "none"
        raise SystemExit(f"no tensor begins with {prefix!r}; there are: {some}, ...")
    return names


def read(source: Path, wanted: State, dtype: torch.dtype | None) -> State:
    """The values of some tensors, floating ones as `dtype`."""
    values = {key: torch.empty_like(each, device="cpu") for key, each in wanted.items()}
    dcp.load(values, storage_reader=dcp.FileSystemReader(source), no_dist=True)
    return {
        key: each.to(dtype) if dtype and each.is_floating_point() else each
        for key, each in values.items()
    }


def write(
    source: Path, target: Path, prefix: str, dtype: torch.dtype | None, max_shard: str
) -> int:
    """Write the safetensors files and, of several, the index; returns how many."""
    tensors = outline(source)
    names = renamed(tensors, prefix)
    left_out = len(tensors) - len(names)
    if left_out:
        print(f"left out: {left_out} tensors that do not begin with {prefix!r}")
    planned = {
        new: tensors[old].to(dtype)
        if dtype and tensors[old].is_floating_point()
        else tensors[old]
        for new, old in names.items()
    }
    split = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard)
    for file, keys in split.filename_to_tensors.items():
        values = read(source, {names[key]: tensors[names[key]] for key in keys}, dtype)
        shard = {key: values[names[key]].contiguous() for key in keys}
        save_file(shard, target / file, metadata={"format": "pt"})
        print(f"{target / file}: {len(shard)} tensors")
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        path = target / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return len(split.filename_to_tensors)


def copy_config(source: Path, target: Path, dtype: str | None) -> None:
    """All files but weights; config.json names the new dtype."""
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(WEIGHTS):
            shutil.copy(path, target / path.name)
    if dtype:
        config = json.loads((target / "config.json").read_text())
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = dtype
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with .metadata and *.distcp")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--config", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--dtype", choices=DTYPES, help="default: as it was saved")
    parser.add_argument(
        "--strip-prefix",
        default="",
        metavar="PREFIX",
        help="take this from the names, and leave out tensors without it",
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE")
    args = parser.parse_args(arguments)

    if not (args.config / "config.json").is_file():
        raise SystemExit(f"--config {args.config}: no config.json in it")
    if args.target.exists() and any(args.target.iterdir()):
        raise SystemExit(f"{args.target} is not empty; give a new folder")
    args.target.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES[args.dtype] if args.dtype else None
    write(args.source, args.target, args.strip_prefix, dtype, args.max_shard_size)
    copy_config(args.config, args.target, args.dtype)


if __name__ == "__main__":
    main()
