"""Checkpoints made from the golden ones, in a folder of the test's own."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.golden_cases import GOLDEN


def derived(
    folder: Path, base: str, weights: dict[str, Tensor] | None = None, **changes: Any
) -> Path:
    """Write a checkpoint like the golden one `base` into `folder`, and return that.

    Args:
        folder: made by this.
        base: its tokenizer is copied, as are weights and fields that are not given.
        weights: all weights of the new checkpoint; None for those of `base`.
        changes: fields of config.json; None leaves one out.
    """
    folder.mkdir()
    for file in (GOLDEN / base).iterdir():
        if file.suffix in (".json", ".jinja", ".safetensors"):
            shutil.copyfile(file, folder / file.name)
    config = folder / "config.json"
    fields = {**json.loads(config.read_text()), **changes}
    fields = {name: value for name, value in fields.items() if value is not None}
    config.write_text(json.dumps(fields))
    if weights is not None:
        file = folder / "model.safetensors"
        save_file(
            {k: w.contiguous() for k, w in weights.items()}, file, {"format": "pt"}
        )
    return folder


def in_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    """Put `weights` in the place of a folder's own, in two files with an index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    places = {}
    for number in range(2):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        part = dict(sorted(weights.items())[number::2])
        save_file(part, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
