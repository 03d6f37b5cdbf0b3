"""WeDLM (WeDLMForCausalLM) in plain PyTorch: Qwen3's layers, or Qwen2's, uncached.

The network is SDAR's; the variant of Qwen2 has biases and no norms of queries and keys.
The caller gives the attention mask, in which the order of a window is all there is.
"""

from dataclasses import dataclass

from torch import nn

from tests.reference.sdar import SDAR, SDARConfig


@dataclass
class WeDLMConfig(SDARConfig):
    """What config.json says besides; the defaults are the authors'."""

    block_size: int = 0
    attention_bias: bool = True
    qk_norm: bool = False


class WeDLM(SDAR):
    """As `SDAR`."""

    config_class = WeDLMConfig

    def __init__(self, config: WeDLMConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            attention = layer.self_attn
            if config.attention_bias:
                for name in ("q_proj", "k_proj", "v_proj"):
                    plain = getattr(attention, name)
                    biased = nn.Linear(plain.in_features, plain.out_features)
                    setattr(attention, name, biased)
            if not config.qk_norm:
                attention.q_norm = attention.k_norm = nn.Identity()
