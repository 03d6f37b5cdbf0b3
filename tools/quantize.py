"""A checkpoint with its linear layers in int8, in llm-compressor's format.

    python tools/quantize.py LLaDA-8B-Instruct LLaDA-8B-Instruct-int8
    vllm serve LLaDA-8B-Instruct-int8

What `--quantization dllm_int8` does while it loads is done once, and stored: a scale
for each output of a layer, inputs quantized row by row while it runs. Embeddings,
norms, routers and experts stay as they are. compressed-tensors writes the files, one
of the checkpoint's at a time; no code of the model is run.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from compressed_tensors.config import CompressionFormat
from compressed_tensors.entrypoints.convert import convert_checkpoint
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationStatus,
    preset_name_to_scheme,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from vllm_dllm.ops.int8_groups import quantize

EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|wte|word_embeddings)")
HEAD = re.compile(r"(.*\.)?(lm_head|transformer\.ff_out|diffusion_head)")
LEFT = {"routers": r".*\.gate$", "experts": r".*\.experts\..*"}
"""Modules that vLLM would look for in int8 if it was not told."""
TIES = ("tie_word_embeddings", "weight_tying")
"""What a config.json may call that the head is the embedding."""

State = dict[str, torch.Tensor]


class Int8:
    """compressed-tensors' `Converter`: what becomes of the tensors of a file."""

    def __init__(self, head: bool, ties_head: bool) -> None:
        """
        Args:
            head: whether it becomes int8 too.
            ties_head: whether it is the embedding, which it then is no longer.
        """
        self.head, self.copies_head = head, head and ties_head
        self.made = 0
        self.left: set[str] = set()

    def process(self, tensors: State) -> State:
        """Takes tensors out of `tensors`, so that a file's are not there twice."""
        made: State = {}
        for name in [*tensors]:
            weight = tensors.pop(name)
            module = name.removesuffix(".weight")
            if self.copies_head and EMBEDDING.fullmatch(module):
                made |= self.parts("lm_head", weight)
            if self.copies_head and HEAD.fullmatch(module):
                continue
            if name.endswith(".weight") and self.becomes_int8(module, weight):
                made |= self.parts(module, weight)
            else:
                made[name] = weight
        return made

    def becomes_int8(self, module: str, weight: torch.Tensor) -> bool:
        if weight.ndim != 2 or EMBEDDING.fullmatch(module):
            return False
        for kind, pattern in LEFT.items():
            if re.match(pattern, module):
                self.left.add(kind)
                return False
        return self.head or not HEAD.fullmatch(module)

    def parts(self, module: str, weight: torch.Tensor) -> State:
        rows = quantize(weight)
        self.made += 1
        return {
            f"{module}.weight": rows.values,
            f"{module}.weight_scale": rows.scale.unsqueeze(1),
        }

    def validate(self, tensors: State) -> None:
        """Any tensor may be in a checkpoint."""

    def get_dependencies(self, weight_name: str) -> set[str]:
        return set()

    def create_config(self) -> QuantizationConfig:
        """`quantization_config`; vLLM knows a head by its name alone."""
        targets = ["Linear", "lm_head"] if self.head else ["Linear"]
        return QuantizationConfig(
            config_groups={"group_0": preset_name_to_scheme("W8A8", targets)},
            format=CompressionFormat.int_quantized.value,
            quantization_status=QuantizationStatus.COMPRESSED,
            ignore=[f"re:{LEFT[kind]}" for kind in sorted(self.left)],
        )


def convert(source: Path, target: Path, head: bool) -> Int8:
    """Write the quantized checkpoint."""
    config = json.loads((source / "config.json").read_text())
    ties = [name for name in TIES if config.get(name)]
    converter = Int8(head, ties_head=bool(ties))
    convert_checkpoint(source, target, converter)
    if converter.copies_head:
        file = target / "config.json"
        untied = json.loads(file.read_text()) | dict.fromkeys(ties, False)
        file.write_text(json.dumps(untied, indent=2) + "\n")
    return converter


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the checkpoint")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument(
        "--keep-head", action="store_true", help="leave the head as it is"
    )
    args = parser.parse_args(arguments)
    if not list(args.source.glob("*.safetensors")):
        raise SystemExit(f"{args.source} has no *.safetensors")
    if not (args.source / "config.json").is_file():
        raise SystemExit(f"{args.source} has no config.json")
    if "quantization_config" in json.loads((args.source / "config.json").read_text()):
        raise SystemExit(f"{args.source} is quantized already (quantization_config)")
    if args.target.exists() and any(args.target.iterdir()):
        raise SystemExit(f"{args.target} is not empty; give a new folder")
    args.target.mkdir(parents=True, exist_ok=True)
    converter = convert(args.source, args.target, head=not args.keep_head)
    print(f"{converter.made} layers are int8 in {args.target}")
    if "experts" in converter.left:
        print(
            "experts stay as they are: vLLM's build for CPU loads none in int8 "
            "(--quantization dllm_int8 on the original does)"
        )


if __name__ == "__main__":
    main()
