"""The table of supported architectures. A new model is one row here and one file."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_dllm.config import Facts

if TYPE_CHECKING:
    from vllm.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """What is known of all checkpoints of an architecture."""

    model: str
    """Model class, "module:Class", imported when first used."""
    config: str
    """Name of the HF config class in `models/configs.py`."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Fields of `DllmConfig` for checkpoints that do not say."""
    facts: Facts = field(default_factory=Facts)
    """Those of the architecture; `models/sources.py` adds those of an engine."""
    mask_tokens: tuple[str, ...] = ()
    """Spellings of the mask token, to look up its id in the tokenizer."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end a turn, whether or not generation_config.json says so. The last
    one is the family's own end of a turn."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Sampling parameters that the authors decode with, for checkpoints whose
    generation_config.json does not say and requests that do not either."""
    steps_back: bool = False
    """Whether vLLM may come to have the architecture itself, and then has it alone."""
    inherited: frozenset[str] = frozenset()
    """Sampling parameters that the base model left in generation_config.json, and the
    authors' code does not read."""
    revisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Defaults of later checkpoints, over the others, by the field of config.json that
    only these have."""


_LLADA2 = {"block_size": 32, "threshold": 0.95, "cap_steps": True}
_LLADA22 = {
    "algorithm": "joint_threshold_indel",
    "threshold": 0.5,
    "edit_threshold": 0.0,
}
_SDAR = {"block_size": 4, "threshold": 0.85}
# The mask is a default of the authors' `generate`; their config.json has none.
_STABLE_DIFFCODER = {
    "block_size": 4,
    "algorithm": "low_confidence",
    "threshold": 0.95,
    "mask_token_id": 5,
}
_LLADA = {"block_size": 32, "algorithm": "low_confidence"}
_DREAM = {"algorithm": "neg_entropy"}
_LLADA_FACTS = Facts(
    attention="full",
    clean_confidence=True,
    rule_names={"threshold": "confidence_threshold"},
)
_DREAM_FACTS = Facts(
    attention="full",
    shifted_logits=True,
    rule_names={
        "threshold": "confidence_threshold",
        "entropy": "neg_entropy",
        "d3llm": "d3llm_of_dream",
    },
)
_GREEDY = {"temperature": 0.0}
_LLADA_GENERATION = {"temperature": 0.0, "max_tokens": 128}
_LLADA_MOE = Family(
    model="vllm_dllm.models.llada_moe:LLaDAMoEModelLM",
    config="LLaDAConfig",
    defaults=_LLADA,
    facts=_LLADA_FACTS,
    mask_tokens=("<|mask|>",),
    stop_tokens=("<|endoftext|>", "<|role_end|>"),
    generation=_LLADA_GENERATION,
)
_WEDLM = {
    "algorithm": "wedlm",
    "block_size": 16,
    "entropy_threshold": 0.4,
    "pos_penalty_factor": 0.02,
}

FAMILIES: dict[str, Family] = {
    "LLaDA2MoeModelLM": Family(
        model="vllm_dllm.models.llada2_moe:LLaDA2MoeModelLM",
        config="LLaDA2MoeConfig",
        defaults=_LLADA2,
        revisions={"expert_capacity": _LLADA22},
        mask_tokens=("<|mask|>",),
        stop_tokens=("<|endoftext|>", "<|role_end|>"),
        generation=_GREEDY,
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
    "StableDiffcoderForCausalLM": Family(
        model="vllm_dllm.models.stable_diffcoder:StableDiffcoderForCausalLM",
        config="StableDiffcoderConfig",
        defaults=_STABLE_DIFFCODER,
        facts=Facts(
            cuts_last_block=True,
            rule_names={
                "threshold": "confidence_threshold",
                "low_confidence": "even_low_confidence",
            },
        ),
        mask_tokens=("<[MASK]>",),
        generation=_GREEDY,
    ),
    "Fast_dLLM_QwenForCausalLM": Family(
        model="vllm_dllm.models.fast_dllm_v2:FastDLLMv2",
        config="FastDLLMv2Config",
        defaults={"block_size": 32, "threshold": 0.9},
        facts=Facts(
            attention="seeded",
            shifted_logits=True,
            clean_confidence=True,
            rule_names={"threshold": "sub_block_threshold"},
        ),
        mask_tokens=("|<MASK>|",),
        stop_tokens=("<|endoftext|>", "<|im_end|>"),
        generation=_GREEDY,
        inherited=frozenset({"temperature", "top_p", "top_k", "repetition_penalty"}),
    ),
    "NemotronLabsDiffusionModel": Family(
        model="vllm_dllm.models.nemotron_labs_diffusion:NemotronLabsDiffusionModel",
        config="NemotronLabsDiffusionConfig",
        defaults={"block_size": 32, "threshold": 0.9},
        facts=Facts(
            attention="seeded_causal",
            clean_confidence=True,
            rule_names={"threshold": "confidence_threshold"},
        ),
        generation=_GREEDY,
        steps_back=True,
    ),
    "LLaDAModelLM": Family(
        model="vllm_dllm.models.llada:LLaDAModelLM",
        config="LLaDAConfig",
        defaults=_LLADA,
        facts=_LLADA_FACTS,
        mask_tokens=("<|mdm_mask|>",),
        stop_tokens=("<|endoftext|>", "<|eot_id|>"),
        generation=_LLADA_GENERATION,
    ),
    "LLaDAMoEModelLM": _LLADA_MOE,
    "LLaDAMoEModel": _LLADA_MOE,
    "DreamModel": Family(
        model="vllm_dllm.models.dream:DreamModel",
        config="DreamConfig",
        defaults=_DREAM,
        facts=_DREAM_FACTS,
        mask_tokens=("<|mask|>", "<|dlm_mask|>"),
        stop_tokens=("<|endoftext|>", "<|im_end|>"),
        generation={"temperature": 0.0, "max_tokens": 512},
    ),
    "DiffuLlamaModel": Family(
        model="vllm_dllm.models.diffullama:DiffuLlamaModel",
        config="DiffuLlamaConfig",
        defaults={"algorithm": "random_order", "steps": 64},
        facts=_DREAM_FACTS,
        generation={"temperature": 0.9, "top_p": 0.9},
    ),
    "WeDLMForCausalLM": Family(
        model="vllm_dllm.models.wedlm:WeDLMForCausalLM",
        config="WeDLMConfig",
        defaults=_WEDLM,
        facts=Facts(
            attention="window",
            clean_confidence=True,
            rule_names={"sequential": "leftmost"},
        ),
        stop_tokens=("<|endoftext|>", "<|im_end|>"),
        generation={"temperature": 0.2},
    ),
}
"""HF `architectures[0]` -> family. Not keyed by `model_type`, which families share."""


def is_ours(model_config: "ModelConfig | None") -> bool:
    """Whether the model is one of our architectures; others keep vLLM's behaviour."""
    return model_config is not None and not FAMILIES.keys().isdisjoint(
        model_config.architectures
    )
