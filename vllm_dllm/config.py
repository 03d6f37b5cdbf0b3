"""Server-wide choices: one pydantic model, and where each value comes from.

Later sources win: the family's table (models/registry.py), the checkpoint's
config.json, `additional_config["dllm"]` (which `--dllm-config` and the other
`--dllm-*` flags are folded into, cli.py). The resolved config rides on the HF config,
which reaches every process inside `VllmConfig`.
"""

from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from vllm_dllm.request import RuleParams, describe

if TYPE_CHECKING:
    from vllm.config import ModelConfig

KEY = "dllm"
"""Our key in `additional_config`, and our attribute on the HF config."""


class DllmConfig(RuleParams):
    """Choices of a server that hold for all its requests, and their defaults."""

    block_size: int = Field(ge=1, le=4096)
    """Diffusion block size in tokens. Must be the one the checkpoint was trained
    with. Not the KV page size, which is vLLM's `--block-size`."""
    mask_token_id: int = Field(ge=0)
    """Token id that stands for a position not yet decoded."""
    cap_steps: bool = False
    """Take no more steps for a block than the whole answer may have tokens, as LLaDA2's
    authors do."""

    def request_defaults(self) -> dict[str, Any]:
        """Values of `DllmParams` for a request that sets none."""
        return self.model_dump(include=set(RuleParams.model_fields))

    @classmethod
    def build(cls, *sources: dict[str, Any]) -> "DllmConfig":
        """The config in which later sources win over earlier ones.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        fields: dict[str, Any] = {}
        for source in sources:
            fields.update((k, v) for k, v in source.items() if v is not None)
        block_size = fields.get("block_size")
        # A block size that is refused below must not be refused as a number of steps.
        usable = type(block_size) is int and block_size >= 1
        fields.setdefault("steps", block_size if usable else 1)
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ValueError(describe(error, cls, f"{KEY}.")) from None

    def attach(self, model_config: "ModelConfig") -> None:
        """Make `of(model_config)` return this config, in every process."""
        setattr(model_config.hf_config, KEY, self.model_dump())

    @classmethod
    def of(cls, model_config: "ModelConfig") -> "DllmConfig":
        """The resolved config of a running engine."""
        return cls(**getattr(model_config.hf_config, KEY))


def given(additional_config: Any) -> dict[str, Any]:
    """What the user set under our key of vLLM's `additional_config`.

    Raises:
        ValueError: if it is not a mapping.
    """
    # vLLM also takes an object of the user's own class, which has no keys.
    fields = additional_config.get(KEY) if isinstance(additional_config, dict) else None
    if not isinstance(fields, dict | None):
        raise ValueError(
            f'additional_config["{KEY}"]={fields!r} is not a mapping; known fields: '
            f"{', '.join(DllmConfig.model_fields)}"
        )
    return dict(fields or {})
