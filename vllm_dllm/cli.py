"""`--dllm-*` flags: a titled group of `vllm serve`, folded into additional_config.

Not an argparse action with vLLM's `diffusion_config` as its destination: vLLM appends
dotted options last and would overwrite it without a word.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from vllm_dllm.config import KEY, DllmConfig, given
from vllm_dllm.decoding.registry import ALIASES, NAMES
from vllm_dllm.params import choices_of, kind_of
from vllm_dllm.quoting import quoted

FLAGS = (
    "block_size",
    "mask_token_id",
    "algorithm",
    "threshold",
    "steps",
    "cache",
    "buffer_size",
    "busy_threshold",
    "busy_requests",
)
"""Fields of `DllmConfig` that have a flag of their own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the group `dllm` (`vllm serve --help=dllm`)."""
    group = parser.add_argument_group(
        title=KEY,
        description="Diffusion language models (vllm-dllm). "
        "Defaults come from the checkpoint.",
    )
    for name in FLAGS:
        field = DllmConfig.model_fields[name]
        group.add_argument(
            f"--dllm-{name.replace('_', '-')}",
            type=kind_of(field),
            choices=[*NAMES, *ALIASES] if name == "algorithm" else choices_of(field),
            help=_help(field),
        )
    group.add_argument(
        "--dllm-config",
        type=parse_config,
        metavar="JSON_OR_YAML_FILE",
        help="All of the above and "
        + ", ".join(sorted(DllmConfig.model_fields.keys() - {*FLAGS}))
        + " as a JSON object, or the path of a YAML file. The other flags win over it.",
    )


def _help(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("%", "%%")


def parse_config(text: str) -> dict[str, Any]:
    """A JSON object, or the content of a YAML file. Raises ArgumentTypeError."""
    try:
        if text.lstrip().startswith("{"):
            value = json.loads(text)
        else:
            value = yaml.safe_load(Path(text).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} is neither a JSON object nor a readable YAML file: {error}"
        ) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{quoted(text)} does not hold a mapping")
    return value


def fold(args: argparse.Namespace, additional_config: Any) -> Any:
    """vLLM's `additional_config` with the values of our flags in it."""
    flags = {
        name: value
        for name in FLAGS
        if (value := getattr(args, f"dllm_{name}", None)) is not None
    }
    own = {**(getattr(args, "dllm_config", None) or {}), **flags}
    if not own:
        return additional_config
    if not isinstance(additional_config, dict):
        raise ValueError(
            f"--dllm-* options cannot be added to additional_config="
            f"{quoted(additional_config)}, which is not a mapping"
        )
    return {**additional_config, KEY: {**given(additional_config), **own}}
