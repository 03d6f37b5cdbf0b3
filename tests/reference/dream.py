"""Dream (DreamModel) in plain PyTorch: Qwen2's layers without an attention mask.

Independent of vLLM and of transformers. Weight names are those of the released
checkpoints, so a state dict is read as it is.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tests.reference.kv_cache import Cache
from tests.reference.llada import rotate
from tests.reference.sdar import MLP


@dataclass
class DreamConfig:
    """The fields of config.json that decide the computation."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int = 0
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Take what is known here out of a config.json."""
        known = {item.name for item in fields(cls)} & raw.keys()
        return cls(**{name: raw[name] for name in known})


class Attention(nn.Module):
    """Every query sees every key; with biases or with norms of heads."""

    def __init__(self, config: DreamConfig, layer: int, bias: bool, norm: bool) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.layer, self.theta = layer, config.rope_theta
        self.dim = hidden // config.num_attention_heads
        keys = config.num_key_value_heads * self.dim
        self.q_proj = nn.Linear(hidden, hidden, bias=bias)
        self.k_proj = nn.Linear(hidden, keys, bias=bias)
        self.v_proj = nn.Linear(hidden, keys, bias=bias)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)
        self.q_norm = nn.RMSNorm(self.dim, eps) if norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.dim, eps) if norm else nn.Identity()

    def forward(self, hidden: Tensor, start: int, cache: Cache | None) -> Tensor:
        """hidden: [..., length, hidden] -> the same shape."""
        query, key, value = (
            project(hidden).unflatten(-1, (-1, self.dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query = rotate(self.q_norm(query), self.theta, start)
        key = rotate(self.k_norm(key), self.theta, start)
        if cache:
            key, value = cache.update(self.layer, start, key, value)
        mixed = functional.scaled_dot_product_attention(
            *(heads.transpose(-3, -2) for heads in (query, key, value)), enable_gqa=True
        )
        return self.o_proj(mixed.transpose(-3, -2).flatten(-2))


class DecoderLayer(nn.Module):
    """Pre-norm attention, then `mlp`."""

    def __init__(
        self, config: DreamConfig, attention: Attention, mlp: nn.Module
    ) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.self_attn = attention
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.mlp = mlp

    def feed_forward(self, normed: Tensor) -> Tensor:
        """normed: [..., length, hidden] -> the same shape."""
        return self.mlp(normed)

    def forward(self, hidden: Tensor, start: int, cache: Cache | None) -> Tensor:
        """hidden: [..., length, hidden] -> the same shape."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), start, cache)
        return hidden + self.feed_forward(self.post_attention_layernorm(hidden))


class Backbone(nn.Module):
    """Embeddings, layers and the last norm; the released names' `model.` prefix."""

    def __init__(self, config: DreamConfig, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Dream(nn.Module):
    """Token ids to logits; row i predicts position i + 1."""

    config_class: type[DreamConfig] = DreamConfig

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.config = config
        layers = [self.build_layer(layer) for layer in range(config.num_hidden_layers)]
        self.model = Backbone(config, layers)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def build_layer(self, layer: int) -> nn.Module:
        """The layer of that number."""
        config = self.config
        attention = Attention(config, layer, bias=True, norm=False)
        mlp = MLP(config.hidden_size, config.intermediate_size)
        return DecoderLayer(config, attention, mlp)

    def forward(
        self, ids: Tensor, start: int = 0, cache: Cache | None = None
    ) -> Tensor:
        """Logits of every given position.

        Args:
            ids: [..., length] int64, at positions start .. start + length; with a
                cache one unbatched [length].
            cache: takes these positions' keys and values, and is what they attend to.

        Returns:
            logits: [..., length, vocab] float32.
        """
        hidden = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            hidden = layer(hidden, start, cache)
        return self.lm_head(self.model.norm(hidden))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read config.json and model.safetensors (weights become float32)."""
        folder = Path(folder)
        raw = json.loads((folder / "config.json").read_text())
        model = cls(cls.config_class.from_dict(raw))
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({name: part.float() for name, part in weights.items()})
        return model.eval()
