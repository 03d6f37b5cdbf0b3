"""LLaDA-MoE (LLaDAMoEModelLM) in plain PyTorch; full attention, no shift."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.reference.dream import Attention, DecoderLayer, Dream, DreamConfig
from tests.reference.sdar import MLP


@dataclass
class LLaDAMoEConfig(DreamConfig):
    """The fields of config.json that decide the computation."""

    rope_theta: float = 50000.0
    rms_norm_eps: float = 1e-5
    num_experts: int = 64
    num_experts_per_tok: int = 8
    expert_intermediate_size: int = 1024
    dense_intermediate_size: int = 8192
    shared_expert_intermediate_size: int | None = None
    moe_router_enable_expert_bias: bool = False
    moe_layer_freq: list[int] = field(default_factory=list)
    """One number per layer; 0: no experts."""


class SparseMoE(nn.Module):
    """Softmax over all experts, then the best few; their scores are the weights."""

    def __init__(self, config: LLaDAMoEConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            MLP(config.hidden_size, config.expert_intermediate_size)
            for _ in range(config.num_experts)
        )
        bias = torch.zeros(config.num_experts)
        if config.moe_router_enable_expert_bias:
            self.register_buffer("expert_bias", bias)
        else:
            self.expert_bias = None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [..., hidden] -> the same shape."""
        scores = self.gate(hidden).float().softmax(-1)
        if self.expert_bias is not None:
            scores = scores + self.expert_bias
        weights, chosen = scores.topk(self.top_k, -1)
        output = torch.zeros_like(hidden)
        for expert, mlp in enumerate(self.experts):
            weight = (weights * (chosen == expert)).sum(-1, keepdim=True)
            output += weight * mlp(hidden)
        return output


class MoEDecoderLayer(DecoderLayer):
    """A layer with experts, and maybe one that all tokens share."""

    def __init__(self, config: LLaDAMoEConfig, attention: Attention) -> None:
        super().__init__(config, attention, SparseMoE(config))
        inner = config.shared_expert_intermediate_size
        if inner is not None:
            self.shared_expert = MLP(config.hidden_size, inner)

    def feed_forward(self, normed: Tensor) -> Tensor:
        output = self.mlp(normed)
        if hasattr(self, "shared_expert"):
            output = output + self.shared_expert(normed)
        return output


class LLaDAMoE(Dream):
    """Token ids to logits; row i predicts position i."""

    config: LLaDAMoEConfig
    config_class = LLaDAMoEConfig

    def build_layer(self, layer: int) -> nn.Module:
        config = self.config
        attention = Attention(config, layer, bias=False, norm=True)
        if config.moe_layer_freq[layer]:
            return MoEDecoderLayer(config, attention)
        mlp = MLP(config.hidden_size, config.dense_intermediate_size)
        return DecoderLayer(config, attention, mlp)
