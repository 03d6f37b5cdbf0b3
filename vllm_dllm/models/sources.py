"""Where the server-wide choices come from, and what the engine itself adds to them."""

from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform

from vllm_dllm.config import KEY, DllmConfig, Facts, given
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.models.registry import FAMILIES, Family
from vllm_dllm.plans.grid import UNBOUNDED
from vllm_dllm.quoting import quoted
from vllm_dllm.regimes.registry import regime_of

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


def family_of(model_config: "ModelConfig") -> Family:
    return FAMILIES[model_config.architecture]


def defaults_of(model_config: "ModelConfig") -> dict[str, Any]:
    """Those of the family, and of a later checkpoint of it."""
    family = family_of(model_config)
    defaults = dict(family.defaults)
    for field, later in family.revisions.items():
        if getattr(model_config.hf_config, field, None):
            defaults |= later
    return defaults


def user_fields(vllm_config: "VllmConfig") -> dict[str, Any]:
    """What the user set under our key, and vLLM's own name for the block size."""
    fields = given(vllm_config.additional_config)
    if vllm_config.diffusion_config is not None:
        fields.setdefault("block_size", vllm_config.diffusion_config.canvas_length)
    return fields


def checkpoint_fields(model_config: "ModelConfig") -> dict[str, Any]:
    """Fields of `DllmConfig` that the checkpoint itself states."""
    return {
        "block_size": getattr(model_config.hf_config, "block_size", None),
        "mask_token_id": find_mask_token(model_config),
    }


def find_mask_token(model_config: "ModelConfig") -> int | None:
    """What stands for a position not yet decoded, by the first that says.

    Of config.json, generation_config.json and the tokenizer, which may name it or know
    it under a spelling of its family, or of another one.
    """
    stated = getattr(model_config.hf_config, "mask_token_id", None)
    if stated is None:
        stated = model_config.try_get_generation_config().get("mask_token_id")
    if stated is not None:
        return stated
    named = getattr(tokenizer_of(model_config), "mask_token", None)
    families = [family_of(model_config), *FAMILIES.values()]
    spellings = [spelling for family in families for spelling in family.mask_tokens]
    found = find_tokens(model_config, (named or "", *spellings))
    return next((token for token in found if token is not None), None)


def find_moves(model_config: "ModelConfig", mask_token_id: int) -> dict[str, int]:
    """The tokens that move others, which config.json names or does not.

    Raises:
        ValueError: for an id that the model does not have, or has for something else.
    """
    found: dict[str, int] = {}
    for name in ("delete_token_id", "split_token_id"):
        token = getattr(model_config.hf_config, name, None)
        if token is None:
            continue
        known = range(model_config.get_vocab_size())
        if token not in known or token in (mask_token_id, *found.values()):
            raise ValueError(
                f"config.json: {name}={quoted(token)}; allowed: 0 to {known[-1]}, not "
                f"the mask ({mask_token_id}), and not one for both"
            )
        found[name] = token
    return found


def find_end_token(model_config: "ModelConfig") -> int | None:
    """The end of the text, by the first of the same that names one the model has."""
    generation = model_config.try_get_generation_config()
    sources = (
        getattr(model_config.hf_config, "eos_token_id", None),
        generation.get("eos_token_id"),
        getattr(tokenizer_of(model_config), "eos_token_id", None),
    )
    known = range(model_config.get_vocab_size())
    for source in sources:
        for token in source if isinstance(source, list) else [source]:
            if token in known:
                return token
    return None


def tokenizer_of(model_config: "ModelConfig") -> Any:
    """The checkpoint's tokenizer, or None where the engine has none."""
    from vllm.tokenizers import cached_tokenizer_from_config

    if model_config.skip_tokenizer_init:
        return None
    return cached_tokenizer_from_config(model_config)


def find_tokens(
    model_config: "ModelConfig", spellings: tuple[str, ...]
) -> list[int | None]:
    """The id of each spelling in the checkpoint's tokenizer, or None."""
    tokenizer = tokenizer_of(model_config)
    if tokenizer is None or not spellings:
        return [None] * len(spellings)
    vocab = tokenizer.get_vocab()
    return [vocab.get(spelling) for spelling in spellings]


def may_have_soft_tokens(vllm_config: "VllmConfig", config: DllmConfig) -> bool:
    """Whether the engine may be given embeddings.

    Raises:
        ValueError: if it must, and the model cannot.
    """
    needs = get_rule(config.algorithm).softens
    wanted, possible = config.soft_tokens, regime_of(config.facts).has_soft_tokens
    if needs and (wanted is False or not possible):
        raise ValueError(
            f"{KEY}.algorithm={config.algorithm!r} needs {KEY}.soft_tokens, which are "
            f"{'switched off' if possible else 'for block-causal models'}"
        )
    if wanted and not possible:
        raise ValueError(f"{KEY}.soft_tokens=True is for block-causal models")
    if wanted is not None:
        return wanted
    is_free = current_platform.is_cpu() or vllm_config.model_config.enforce_eager
    return needs or (possible and is_free)


def engine_facts(vllm_config: "VllmConfig", config: DllmConfig) -> Facts:
    """The facts of the architecture, and those of this engine."""
    model_config = vllm_config.model_config
    scheduler_config = vllm_config.scheduler_config
    known = range(model_config.get_vocab_size())
    stops = [
        token if token in known else None
        for token in find_tokens(model_config, family_of(model_config).stop_tokens)
    ]
    return config.facts.model_copy(
        update={
            "soft_tokens": may_have_soft_tokens(vllm_config, config),
            "eos_token_id": find_end_token(model_config),
            "eot_token_id": stops[-1] if stops else None,
            "stop_token_ids": [token for token in stops if token is not None],
            "max_model_len": model_config.max_model_len,
            "max_num_batched_tokens": scheduler_config.max_num_batched_tokens,
            "max_num_scheduled_tokens": (
                scheduler_config.max_num_scheduled_tokens or UNBOUNDED
            ),
            "long_prefill_token_threshold": (
                scheduler_config.long_prefill_token_threshold or UNBOUNDED
            ),
            "page_size": vllm_config.cache_config.block_size,
            "plans_ahead": bool(scheduler_config.async_scheduling),
            "vocab_size": len(known),
            **find_moves(model_config, config.mask_token_id),
        }
    )
