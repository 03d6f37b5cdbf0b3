"""LLaDA-MoE: Qwen3-MoE's attention, and experts whose weights are not normalised.

The layers are vLLM's. Besides the router, which may have a bias that counts in the
weights too, the difference is in where a config says which layers have experts.
"""

import re
from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe import FusedMoEFactory, GateLinear
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen3_moe import (
    Qwen3MoeAttention,
    Qwen3MoeDecoderLayer,
    Qwen3MoeMLP,
    Qwen3MoeModel,
)
from vllm.model_executor.models.utils import WeightsMapper, extract_layer_index

from vllm_dllm.models.block_diffusion import BlockDiffusion

RELEASED_NAMES = WeightsMapper(
    # The authors add a shared expert next to the experts, not inside of them.
    orig_to_new_regex={
        re.compile(r"(layers\.\d+)\.shared_expert"): r"\1.mlp.shared_expert"
    },
    # Some checkpoints are of the model without its head's wrapper.
    orig_to_new_prefix={
        "embed_tokens": "model.embed_tokens",
        "layers.": "model.layers.",
        "norm.": "model.norm.",
    },
)


class LLaDAMoE(nn.Module):
    """Softmax over all experts; the scores of the best few are their weights."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        quant_config = vllm_config.quant_config
        self.gate = GateLinear(
            config.hidden_size,
            config.num_experts,
            quant_config=quant_config,
            prefix=f"{prefix}.gate",
        )
        routing = None
        if config.moe_router_enable_expert_bias:
            bias = torch.zeros(config.num_experts, dtype=torch.float32)
            self.expert_bias = nn.Parameter(bias, requires_grad=False)
            routing = partial(biased_routing, self.expert_bias)
        self.shared_expert: Qwen3MoeMLP | None = None
        if config.shared_expert_intermediate_size:
            self.shared_expert = Qwen3MoeMLP(
                config.hidden_size,
                config.shared_expert_intermediate_size,
                config.hidden_act,
                quant_config=quant_config,
                reduce_results=False,
                prefix=f"{prefix}.shared_expert",
            )
        self.experts = FusedMoEFactory(
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            renormalize=False,
            custom_routing_function=routing,
            shared_experts=self.shared_expert,
            quant_config=quant_config,
            prefix=f"{prefix}.experts",
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: [num_tokens, hidden] -> the same shape and dtype."""
        router_logits, _ = self.gate(hidden_states)
        return self.experts(hidden_states=hidden_states, router_logits=router_logits)


def biased_routing(
    bias: torch.Tensor,
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts by their biased scores, which become their weights.

    Args:
        bias: [num_experts] float32.
        gating_output: [num_tokens, num_experts], the router's logits.

    Returns:
        Weights (float32) and experts, [num_tokens, topk] both.
    """
    scores = gating_output.float().softmax(dim=-1) + bias
    weights, experts = scores.topk(topk, dim=-1)
    return weights, experts


class LLaDAMoEDecoderLayer(Qwen3MoeDecoderLayer):
    """Qwen3-MoE's layer, with experts where `moe_layer_freq` says so."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        # Not the base class's, which builds Qwen3-MoE's experts.
        nn.Module.__init__(self)
        config = vllm_config.model_config.hf_config
        quant_config = vllm_config.quant_config
        self.self_attn = Qwen3MoeAttention(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None),
            rope_parameters=config.rope_parameters,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            cache_config=vllm_config.cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.self_attn",
        )
        self.mlp: nn.Module
        if config.moe_layer_freq[extract_layer_index(prefix)]:
            self.mlp = LLaDAMoE(vllm_config, prefix=f"{prefix}.mlp")
        else:
            self.mlp = Qwen3MoeMLP(
                config.hidden_size,
                config.intermediate_size,
                config.hidden_act,
                quant_config=quant_config,
                prefix=f"{prefix}.mlp",
            )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(
            config.hidden_size, eps=config.rms_norm_eps
        )


class LLaDAMoEModelLM(BlockDiffusion, LlamaForCausalLM):
    """`LLaDAMoEModelLM` and `LLaDAMoEModel` checkpoints.

    Llama's class is the frame: Qwen3-MoE's can only hold its own layers.
    """

    hf_to_vllm_mapper = RELEASED_NAMES | Qwen3MoeModel.hf_to_vllm_mapper

    def _init_model(
        self, vllm_config: VllmConfig, prefix: str, layer_type: type[nn.Module]
    ) -> nn.Module:
        return Qwen3MoeModel(
            vllm_config=vllm_config,
            prefix=prefix,
            decoder_layer_type=LLaDAMoEDecoderLayer,
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return super().load_weights(RELEASED_NAMES.apply(weights))
