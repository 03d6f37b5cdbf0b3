"""WeDLM: Qwen3 or Qwen2, layer for layer and name for name, decoded in a window."""

from typing import TYPE_CHECKING

from torch import nn
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from vllm_dllm.models.block_diffusion import BlockDiffusion

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class WeDLMForCausalLM(BlockDiffusion, Qwen3ForCausalLM):
    """`WeDLMForCausalLM` checkpoints.

    Qwen2 is Qwen3 with biases, which vLLM's layers have if the config says so, and
    without norms of queries and keys.
    """

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if not self.config.qk_norm:
            for layer in self.model.layers:
                layer.self_attn.q_norm = layer.self_attn.k_norm = nn.Identity()
