"""Fast-dLLM v2 in plain PyTorch: Qwen2's attention in SDAR's layers.

Row i of the logits predicts position i + 1. Weight names are those of the released
checkpoints, so a state dict is read as it is.
"""

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from tests.reference import sdar


@dataclass
class FastDLLMv2Config(sdar.SDARConfig):
    """The fields of config.json that decide the computation."""

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Take what is known here out of a config.json, which names no heads' size."""
        size = raw["hidden_size"] // raw["num_attention_heads"]
        return super().from_dict(raw | {"head_dim": size, "block_size": raw["bd_size"]})


class Attention(sdar.Attention):
    """With biases, and without norms of heads."""

    def __init__(self, config: FastDLLMv2Config) -> None:
        super().__init__(config)
        hidden = config.hidden_size
        for name in ("q_proj", "k_proj", "v_proj"):
            width = getattr(self, name).out_features
            setattr(self, name, nn.Linear(hidden, width))
        self.q_norm = self.k_norm = nn.Identity()


class FastDLLMv2(sdar.SDAR):
    """Token ids and a dense mask to logits."""

    config_class = FastDLLMv2Config

    def __init__(self, config: FastDLLMv2Config) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn = Attention(config)
