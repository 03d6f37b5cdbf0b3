"""SDAR-MoE (SDARMoeForCausalLM) in plain PyTorch: SDAR with Qwen3-MoE's experts."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.reference.sdar import MLP, SDAR, SDARConfig


@dataclass
class SDARMoeConfig(SDARConfig):
    """SDAR's fields and those of the experts, which every layer has."""

    num_experts: int = 128
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768


class SparseMoE(nn.Module):
    """Softmax over all experts, then the best few, renormalised."""

    def __init__(self, config: SDARMoeConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            MLP(config.hidden_size, config.moe_intermediate_size)
            for _ in range(config.num_experts)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [length, hidden] -> the same shape."""
        weights, chosen = self.gate(hidden).float().softmax(-1).topk(self.top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        output = torch.zeros_like(hidden)
        for expert, mlp in enumerate(self.experts):
            token, rank = (chosen == expert).nonzero(as_tuple=True)
            output[token] += weights[token, rank, None] * mlp(hidden[token])
        return output


class SDARMoe(SDAR):
    """Token ids and a dense mask to logits, as SDAR."""

    config: SDARMoeConfig
    config_class = SDARMoeConfig

    def build_mlp(self) -> nn.Module:
        return SparseMoE(self.config)
