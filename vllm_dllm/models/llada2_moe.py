"""LLaDA2.x mini and flash: BailingMoeV2 with block diffusion.

The layers are vLLM's. Two things differ: the router's scores stay in float32, as in the
authors' code (rounding them to bfloat16 picks other experts), and the layouts in which
LLaDA2 checkpoints are found are brought to one.
"""

from collections.abc import Iterable

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.bailing_moe import BailingMoE, BailingMoeV2ForCausalLM

from vllm_dllm.models.block_diffusion import BlockDiffusion
from vllm_dllm.models.block_routing import chosen_alone

EXPERT_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class LLaDA2MoE(BailingMoE):
    """A mixture of experts whose router scores are not rounded."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: [num_tokens, hidden] -> the same shape and dtype."""
        router_logits, _ = self.gate(hidden_states)
        return self.experts(hidden_states=hidden_states, router_logits=router_logits)


class BlockRoutedMoE(LLaDA2MoE):
    """LLaDA2.2's: the tokens of a block share `capacity` experts."""

    block: int
    capacity: int

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        router_logits, _ = self.gate(hidden_states)
        router_logits = chosen_alone(
            router_logits,
            self.gate.expert_bias,
            self.block,
            self.capacity,
            self.top_k,
        )
        return self.experts(hidden_states=hidden_states, router_logits=router_logits)

    def take_bias_from_router(self) -> None:
        """Leave the router a bias of zeros: the choice is made before it."""
        self.gate.expert_bias = nn.Parameter(
            torch.zeros_like(self.gate.expert_bias), requires_grad=False
        )

    def zero_routers_bias(self) -> None:
        """No checkpoint has it, so none sets it."""
        self.experts.router.e_score_correction_bias.data.zero_()


class LLaDA2MoeModelLM(BlockDiffusion, BailingMoeV2ForCausalLM):
    """`LLaDA2MoeModelLM` checkpoints (2.0, 2.1, CAP, 2.2)."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for layer in self.model.layers:
            if isinstance(getattr(layer, "mlp", None), BailingMoE):
                # vLLM's decoder block names the class to build; ours hold the same
                # parameters and differ in forward().
                layer.mlp.__class__ = LLaDA2MoE
                if self.config.moe_router_enable_expert_bias:
                    layer.mlp.gate.expert_bias.data.zero_()
                if self.config.expert_capacity:
                    layer.mlp.__class__ = BlockRoutedMoE
                    layer.mlp.block = self.config.block_size
                    layer.mlp.capacity = self.config.expert_capacity
                    layer.mlp.take_bias_from_router()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        for layer in self.model.layers:
            if isinstance(getattr(layer, "mlp", None), BlockRoutedMoE):
                layer.mlp.zero_routers_bias()
        return super().load_weights(canonical_layout(weights))

    def may_lack(self, name: str) -> bool:
        stated = self.config.states_expert_bias
        return name.endswith(".gate.expert_bias") and not stated


def canonical_layout(
    weights: Iterable[tuple[str, torch.Tensor]],
) -> Iterable[tuple[str, torch.Tensor]]:
    """Weights under the names of the released checkpoints.

    Known besides them: the multimodal export (`model.language_model.` and
    `model.lm_head.` prefixes) and dFactory's merged experts, one
    [num_experts, out, in] tensor `mlp.experts.{gate,up,down}_proj` per layer.
    """
    for name, weight in weights:
        if name.startswith("model.lm_head."):
            name = name.removeprefix("model.")
        elif name.startswith("model.language_model."):
            name = "model." + name.removeprefix("model.language_model.")
        head, is_expert, projection = name.partition(".mlp.experts.")
        projection = projection.removesuffix(".weight")
        if is_expert and projection in EXPERT_PROJECTIONS:
            for expert, expert_weight in enumerate(weight):
                yield f"{head}.mlp.experts.{expert}.{projection}.weight", expert_weight
        else:
            yield name, weight
