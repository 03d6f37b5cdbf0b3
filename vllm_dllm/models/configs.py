"""HF config classes of the supported checkpoints, so that no remote code is needed."""

from typing import Any

from transformers import (
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from vllm_dllm.quoting import quoted


class LLaDA2MoeConfig(PreTrainedConfig):
    """LLaDA2.x: BailingMoeV2 with what its released configs leave unsaid."""

    model_type = "llada2_moe"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 157184,
        hidden_size: int = 2048,
        intermediate_size: int = 5120,
        num_hidden_layers: int = 20,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 4,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        use_qkv_bias: bool = False,
        use_qk_norm: bool = True,
        use_bias: bool = False,
        rms_norm_eps: float = 1e-6,
        max_position_embeddings: int = 16384,
        rope_theta: float = 600000.0,
        partial_rotary_factor: float = 0.5,
        num_experts: int = 256,
        num_experts_per_tok: int = 8,
        num_shared_experts: int = 1,
        moe_intermediate_size: int = 512,
        first_k_dense_replace: int = 1,
        n_group: int = 8,
        topk_group: int = 4,
        routed_scaling_factor: float = 2.5,
        norm_topk_prob: bool = True,
        score_function: str = "sigmoid",
        moe_router_enable_expert_bias: bool = True,
        use_sliding_window: bool = False,
        router_dtype: str = "fp32",
        norm_head: bool = False,
        tie_word_embeddings: bool = False,
        block_size: int | None = None,
        expert_capacity: int | None = None,
        delete_token_id: int | None = None,
        split_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.use_qkv_bias = use_qkv_bias
        self.use_qk_norm = use_qk_norm
        self.use_bias = use_bias
        self.rms_norm_eps = rms_norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.partial_rotary_factor = partial_rotary_factor
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.num_shared_experts = num_shared_experts
        self.moe_intermediate_size = moe_intermediate_size
        self.first_k_dense_replace = first_k_dense_replace
        # Routing by blocks knows no groups: there they say nothing.
        self.expert_capacity = expert_capacity or 0
        self.n_group = 1 if self.expert_capacity else n_group
        self.topk_group = 1 if self.expert_capacity else topk_group
        self.routed_scaling_factor = routed_scaling_factor
        self.norm_topk_prob = norm_topk_prob
        self.score_function = score_function
        refuse_other_values(
            {"score_function": score_function},
            {"score_function": ("sigmoid", "softmax")},
        )
        if score_function != "sigmoid" and moe_router_enable_expert_bias:
            raise ValueError(
                "config.json: moe_router_enable_expert_bias=True is not supported with "
                f"score_function={score_function!r}, only with 'sigmoid'"
            )
        self.block_size = block_size
        self.delete_token_id = delete_token_id
        self.split_token_id = split_token_id
        if self.expert_capacity:
            refuse_other_routing(self)
        # The authors' router has one with sigmoid, stated or not, of zeros unless the
        # checkpoint brings its own; vLLM's knows none that is not stated.
        self.states_expert_bias = moe_router_enable_expert_bias
        self.moe_router_enable_expert_bias = score_function == "sigmoid"
        self.use_sliding_window = use_sliding_window
        self.router_dtype = router_dtype
        self.norm_head = norm_head
        # vLLM's Bailing layers ask for these. Without `use_rmsnorm` its q/k norms
        # would be LayerNorms with a bias.
        self.use_rmsnorm = True
        self.embedding_dropout = 0.0
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


def refuse_other_routing(config: LLaDA2MoeConfig) -> None:
    """Raise ValueError for a LLaDA2.2 whose routing by blocks is not defined."""
    capacity, chosen = config.expert_capacity, config.num_experts_per_tok
    if not chosen <= capacity <= config.num_experts:
        raise ValueError(
            f"config.json: expert_capacity={quoted(capacity)}; allowed: {chosen} "
            f"(num_experts_per_tok) to {config.num_experts} (num_experts)"
        )
    if config.score_function != "sigmoid":
        raise ValueError(
            f"config.json: score_function={quoted(config.score_function)} is not "
            f"supported with expert_capacity={capacity}, only 'sigmoid'"
        )
    for name in ("block_size", "delete_token_id", "split_token_id"):
        if getattr(config, name) is None:
            raise ValueError(
                f"config.json: {name} is not given, which expert_capacity={capacity} "
                "(LLaDA2.2) needs"
            )


class SiluAlone:
    """A config of layers that are computed with one activation alone."""

    hidden_act: str

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_other_values({"hidden_act": self.hidden_act}, {"hidden_act": ("silu",)})
        super().__post_init__(**kwargs)  # type: ignore[misc]


class SDARConfig(SiluAlone, Qwen3Config):
    """SDAR and TraDo: Qwen3 weights trained with block diffusion."""

    model_type = "sdar"


class SDARMoeConfig(SiluAlone, Qwen3MoeConfig):
    """SDAR-30B-A3B: Qwen3-MoE weights trained with block diffusion."""

    model_type = "sdar_moe"


class LLaDAConfig(PreTrainedConfig):
    """Dense LLaDA, with OLMo's field names, and LLaDA-MoE, with HF's: one model type.

    Either is read under HF's names. A field that is missing has the value of LLaDA-8B;
    one that asks for a computation which we do not have is refused.
    """

    model_type = "llada"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "n_layers": "num_hidden_layers",
        "mlp_hidden_size": "intermediate_size",
        "max_sequence_length": "max_position_embeddings",
        "weight_tying": "tie_word_embeddings",
        "include_qkv_bias": "qkv_bias",
        "dense_intermediate_size": "intermediate_size",
        "expert_intermediate_size": "moe_intermediate_size",
    }

    def __init__(self, **fields: Any) -> None:
        refuse_other_values(fields, LLADA_VALUES)
        fields = {
            self.attribute_map.get(name, name): value
            for name, value in fields.items()
            # LLaDA-MoE's configs name it, and its code rotates whole heads.
            if value is not None and name != "partial_rotary_factor"
        }
        fields = {**LLADA_8B, **fields}
        fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
        ratio = fields.get("mlp_ratio", 4)
        fields.setdefault("intermediate_size", ratio * fields["hidden_size"])
        # The tables of embeddings may have more rows than there are tokens.
        fields["vocab_size"] = max(
            fields["vocab_size"], fields.pop("embedding_size", 0)
        )
        if "num_experts" in fields:
            fields.setdefault("moe_layer_freq", [1] * fields["num_hidden_layers"])
            fields.setdefault("moe_router_enable_expert_bias", False)
            fields.setdefault("shared_expert_intermediate_size", 0)
        # Rotary frequencies that are stretched are checked against it.
        self.max_position_embeddings = fields["max_position_embeddings"]
        super().__init__(**fields)


LLADA_8B: dict[str, Any] = {
    "vocab_size": 126464,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "qkv_bias": False,
    "tie_word_embeddings": False,
}
"""What `LLaDAConfig` takes for a field that config.json lacks."""

LLADA_VALUES: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "activation_type": ("silu", "swiglu"),
    "rope": (True,),
    "alibi": (False,),
    "block_group_size": (1,),
    "include_bias": (False,),
    "bias_for_layer_norm": (False,),
    "layer_norm_with_affine": (True,),
    "attention_layer_norm": (False,),
    "multi_query_attention": (False,),
    "scale_logits": (False,),
    "input_emb_norm": (False,),
    # And of LLaDA-MoE:
    "hidden_act": ("silu",),
    "qk_layernorm": (True,),
    "attention_bias": (False,),
    "clip_qkv": (),
}
"""Fields of LLaDA's config.json, and the values whose computation we have."""


def refuse_other_values(
    fields: dict[str, Any], known: dict[str, tuple[Any, ...]]
) -> None:
    """Raise ValueError for the first field whose value is none of the known ones.

    None, JSON's null, stands for a field that is not used.
    """
    for name, values in known.items():
        value = fields.get(name)
        if value is not None and value not in values:
            allowed = ", ".join(map(repr, values)) or "null"
            raise ValueError(
                f"config.json: {name}={quoted(value)} is not supported, only {allowed}"
            )


class DreamConfig(SiluAlone, Qwen2Config):
    """Dream, Dream-Coder, DiffuCoder: Qwen2 weights trained to decode in any order."""

    model_type = "Dream"


class StableDiffcoderConfig(SiluAlone, LlamaConfig):
    """Stable-DiffCoder: Llama weights trained with block diffusion.

    Its checkpoints call themselves `llama`, a name that stays vLLM's.
    """

    model_type = "stable_diffcoder"
    # Not Llama's own, which is another token here.
    eos_token_id: int | list[int] | None = None


class DiffuLlamaConfig(SiluAlone, LlamaConfig):
    """DiffuLLaMA: Llama weights trained to decode in any order.

    Nothing in its checkpoints tells it from a Llama: a user must say what it is.
    """

    model_type = "diffullama"


class FastDLLMv2Config(SiluAlone, Qwen2Config):
    """Fast-dLLM v2: Qwen2 weights trained with block diffusion."""

    model_type = "Fast_dLLM_Qwen"
    attribute_map = {"bd_size": "block_size"}


class WeDLMConfig(SiluAlone, Qwen2Config):
    """WeDLM: Qwen2 weights, or Qwen3 weights where config.json says so."""

    model_type = "wedlm"
    attention_bias: bool = True
    qk_norm: bool = False


class NemotronLabsDiffusionConfig(LlamaConfig):
    """Nemotron-Labs-Diffusion: Ministral weights trained to denoise blocks too."""

    model_type = "nemotron_labs_diffusion"

    def __init__(self, **fields: Any) -> None:
        refuse_other_values(fields, NEMOTRON_VALUES)
        rope = dict(fields.get("rope_parameters") or {})
        if beta := rope.pop("llama_4_scaling_beta", None):
            # Where vLLM's layers of Ministral look for it.
            longest = "original_max_position_embeddings"
            fields["llama_4_scaling"] = {"beta": beta, longest: rope[longest]}
        if rope:
            fields["rope_parameters"] = rope
        # Llama's own default would end answers with another token.
        fields.setdefault("eos_token_id", None)
        super().__init__(**fields)


NEMOTRON_VALUES: dict[str, tuple[Any, ...]] = {
    "dlm_paradigm": ("bidirectional",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
}
"""Fields of Nemotron-Labs-Diffusion's config.json, and the values whose computation we
have."""
