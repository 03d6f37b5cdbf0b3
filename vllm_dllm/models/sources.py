"""Where the server-wide choices come from, and what the engine itself adds to them."""

from typing import TYPE_CHECKING, Any

from vllm_dllm.config import DllmConfig, Facts, given
from vllm_dllm.models.registry import FAMILIES, Family
from vllm_dllm.span import UNBOUNDED

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


def family_of(model_config: "ModelConfig") -> Family:
    return FAMILIES[model_config.architecture]


def user_fields(vllm_config: "VllmConfig") -> dict[str, Any]:
    """What the user set under our key, and vLLM's own name for the block size."""
    fields = given(vllm_config.additional_config)
    if vllm_config.diffusion_config is not None:
        fields.setdefault("block_size", vllm_config.diffusion_config.canvas_length)
    return fields


def checkpoint_fields(model_config: "ModelConfig") -> dict[str, Any]:
    """Fields of `DllmConfig` that the checkpoint itself states."""
    hf_config = model_config.hf_config
    mask_token_id = getattr(hf_config, "mask_token_id", None)
    if mask_token_id is None:
        mask_token_id = find_mask_token(model_config)
    return {
        "block_size": getattr(hf_config, "block_size", None),
        "mask_token_id": mask_token_id,
    }


def find_mask_token(model_config: "ModelConfig") -> int | None:
    """The id of the family's mask token in the checkpoint's tokenizer, if any."""
    found = find_tokens(model_config, family_of(model_config).mask_tokens)
    return next((token for token in found if token is not None), None)


def find_tokens(
    model_config: "ModelConfig", spellings: tuple[str, ...]
) -> list[int | None]:
    """The id of each spelling in the checkpoint's tokenizer, or None."""
    from vllm.tokenizers import cached_tokenizer_from_config

    if model_config.skip_tokenizer_init or not spellings:
        return [None] * len(spellings)
    vocab = cached_tokenizer_from_config(model_config).get_vocab()
    return [vocab.get(spelling) for spelling in spellings]


def engine_facts(vllm_config: "VllmConfig", config: DllmConfig) -> Facts:
    """The facts of the architecture, and those of this engine."""
    model_config = vllm_config.model_config
    scheduler_config = vllm_config.scheduler_config
    stops = find_tokens(model_config, family_of(model_config).stop_tokens)
    eos = model_config.hf_config.eos_token_id
    return config.facts.model_copy(
        update={
            "eos_token_id": eos[0] if isinstance(eos, list) else eos,
            "eot_token_id": stops[-1] if stops else None,
            "stop_token_ids": [token for token in stops if token is not None],
            "max_model_len": model_config.max_model_len,
            "max_num_batched_tokens": scheduler_config.max_num_batched_tokens,
            "max_num_scheduled_tokens": (
                scheduler_config.max_num_scheduled_tokens or UNBOUNDED
            ),
            "page_size": vllm_config.cache_config.block_size,
            "vocab_size": model_config.get_vocab_size(),
        }
    )
