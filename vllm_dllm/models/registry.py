"""The table of supported architectures. A new model is one row here and one file."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """What is known of all checkpoints of an architecture."""

    model: str
    """Model class, "module:Class", imported when first used."""
    config: str
    """Name of the HF config class in `models/configs.py`."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Fields of `DllmConfig` for checkpoints that do not say."""
    mask_tokens: tuple[str, ...] = ()
    """Spellings of the mask token, to look up its id in the tokenizer."""
    temperature: float | None = None
    """What the authors decode with where the checkpoint does not say; None: vLLM's."""


_LLADA2 = {"block_size": 32, "threshold": 0.95, "cap_steps": True}
_SDAR = {"block_size": 4, "threshold": 0.85}

FAMILIES: dict[str, Family] = {
    "LLaDA2MoeModelLM": Family(
        model="vllm_dllm.models.llada2_moe:LLaDA2MoeModelLM",
        config="LLaDA2MoeConfig",
        defaults=_LLADA2,
        mask_tokens=("<|mask|>",),
        temperature=0.0,
    ),
    "SDARForCausalLM": Family(
        model="vllm_dllm.models.sdar:SDARForCausalLM",
        config="SDARConfig",
        defaults=_SDAR,
        mask_tokens=("<|MASK|>",),
    ),
    "SDARMoeForCausalLM": Family(
        model="vllm_dllm.models.sdar_moe:SDARMoeForCausalLM",
        config="SDARMoeConfig",
        defaults=_SDAR,
        mask_tokens=("<|MASK|>",),
    ),
}
"""HF `architectures[0]` -> family. Not keyed by `model_type`, which families share."""
