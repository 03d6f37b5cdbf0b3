"""HF config classes of the supported checkpoints, so that no remote code is needed."""

from typing import Any

from transformers import PreTrainedConfig, Qwen3Config, Qwen3MoeConfig


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
        router_dtype: str = "fp32",
        norm_head: bool = False,
        tie_word_embeddings: bool = False,
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
        self.n_group = n_group
        self.topk_group = topk_group
        self.routed_scaling_factor = routed_scaling_factor
        self.norm_topk_prob = norm_topk_prob
        self.score_function = score_function
        self.moe_router_enable_expert_bias = moe_router_enable_expert_bias
        self.router_dtype = router_dtype
        self.norm_head = norm_head
        # vLLM's Bailing layers ask for these. Without `use_rmsnorm` its q/k norms
        # would be LayerNorms with a bias.
        self.use_rmsnorm = True
        self.embedding_dropout = 0.0
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


class SDARConfig(Qwen3Config):
    """SDAR and TraDo: Qwen3 weights trained with block diffusion."""

    model_type = "sdar"


class SDARMoeConfig(Qwen3MoeConfig):
    """SDAR-30B-A3B: Qwen3-MoE weights trained with block diffusion."""

    model_type = "sdar_moe"
