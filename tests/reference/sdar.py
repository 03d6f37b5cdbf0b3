"""SDAR (SDARForCausalLM) in plain PyTorch: Qwen3's layers, without any cache.

Independent of vLLM and of transformers. The caller gives the attention mask. Weight
names are those of the released checkpoints, so a state dict is read as it is.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class SDARConfig:
    """The fields of config.json that decide the computation."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mask_token_id: int
    eos_token_id: int
    block_size: int
    intermediate_size: int = 0
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Take what is known here out of a config.json."""
        known = {item.name for item in fields(cls)} & raw.keys()
        return cls(**{name: raw[name] for name in known})


def rotate(heads: Tensor, theta: float) -> Tensor:
    """Rotate every head by its position, counted from 0; NeoX halves.

    heads: [length, heads, head_dim] -> the same shape.
    """
    length, _, dim = heads.shape
    inverse = theta ** -(torch.arange(0, dim, 2).float() / dim)
    angles = torch.arange(length).float()[:, None] * inverse
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with an RMS norm on each query and key head."""

    def __init__(self, config: SDARConfig) -> None:
        super().__init__()
        hidden, self.dim = config.hidden_size, config.head_dim
        self.theta = config.rope_theta
        queries = config.num_attention_heads * self.dim
        keys = config.num_key_value_heads * self.dim
        self.q_proj = nn.Linear(hidden, queries, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, hidden, bias=False)
        self.q_norm = nn.RMSNorm(self.dim, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.dim, config.rms_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden: [length, hidden] -> the same shape; mask as in the model."""
        length = len(hidden)
        query = self.q_norm(self.q_proj(hidden).view(length, -1, self.dim))
        key = self.k_norm(self.k_proj(hidden).view(length, -1, self.dim))
        value = self.v_proj(hidden).view(length, -1, self.dim)
        query, key = rotate(query, self.theta), rotate(key, self.theta)
        share = query.shape[1] // key.shape[1]
        key, value = (heads.repeat_interleave(share, 1) for heads in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / self.dim**0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return self.o_proj(torch.einsum("hqk,khd->qhd", weights, value).flatten(1))


class MLP(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [..., hidden] -> the same shape."""
        inner = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        return self.down_proj(inner)


class DecoderLayer(nn.Module):
    """Pre-norm attention, then `mlp`."""

    def __init__(self, config: SDARConfig, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(
            config.hidden_size, config.rms_norm_eps
        )
        self.mlp = mlp

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden: [length, hidden] -> the same shape."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), mask)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Backbone(nn.Module):
    """Embeddings, layers and the last norm; the released names' `model.` prefix."""

    def __init__(self, config: SDARConfig, mlps: list[nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, mlp) for mlp in mlps)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class SDAR(nn.Module):
    """Token ids and a dense mask to logits; row i predicts position i (no shift)."""

    config_class: type[SDARConfig] = SDARConfig

    def __init__(self, config: SDARConfig) -> None:
        super().__init__()
        self.config = config
        mlps = [self.build_mlp() for _ in range(config.num_hidden_layers)]
        self.model = Backbone(config, mlps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def build_mlp(self) -> nn.Module:
        """What follows the attention of one layer."""
        return MLP(self.config.hidden_size, self.config.intermediate_size)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits of every position.

        Args:
            ids: [length] int64; positions count from 0.
            mask: [length, length] bool, rows are queries, True = may see.

        Returns:
            logits: [length, vocab] float32.
        """
        return self.read(self.embed(ids), mask)

    def embed(self, ids: Tensor) -> Tensor:
        """ids: [...] int64 -> [..., hidden]."""
        return self.model.embed_tokens(ids)

    def read(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """As `forward`, of embeddings: [length, hidden]."""
        for layer in self.model.layers:
            hidden = layer(hidden, mask)
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
