"""Dense LLaDA (LLaDAModelLM) in plain PyTorch: a Llama without an attention mask.

Independent of vLLM and of transformers, trainable, and reading and writing the released
checkpoint layout, whose weight names are those of the modules here.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.reference.kv_cache import Cache


@dataclass
class LLaDAConfig:
    """The fields of config.json that decide the computation; the rest is in `extra`."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    mlp_hidden_size: int
    vocab_size: int
    embedding_size: int
    mask_token_id: int
    eos_token_id: int
    max_sequence_length: int
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "LLaDAConfig":
        """Split config.json's fields into the ones read here and `extra`."""
        known = {item.name for item in fields(cls)} - {"extra"}
        extra = {key: value for key, value in raw.items() if key not in known}
        return cls(**{key: raw[key] for key in known & raw.keys()}, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The config.json this was read from, with the fields flat again."""
        raw = asdict(self)
        return {**raw.pop("extra"), **raw}


def rotate(heads: Tensor, theta: float, start: int) -> Tensor:
    """Rotate every head by its position, the first of which is `start`; NeoX halves.

    In float32, whatever the dtype is. heads: [..., length, heads, head_dim] -> the same
    shape.
    """
    length, _, dim = heads.shape[-3:]
    inverse = 1 / theta ** (torch.arange(0, dim, 2).float() / dim)
    angles = torch.arange(start, start + length).float()[:, None] * inverse
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = heads.float().chunk(2, dim=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(rotated, dim=-1).to(heads.dtype)


class Block(nn.Module):
    """Pre-norm attention, then a pre-norm SwiGLU, all without biases."""

    def __init__(self, config: LLaDAConfig, layer: int) -> None:
        super().__init__()
        hidden, inner = config.d_model, config.mlp_hidden_size
        self.layer, self.theta = layer, config.rope_theta
        self.dim = hidden // config.n_heads
        keys = config.n_kv_heads * self.dim
        self.attn_norm = nn.RMSNorm(hidden, config.rms_norm_eps)
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, keys, bias=False)
        self.attn_out = nn.Linear(hidden, hidden, bias=False)
        self.ff_norm = nn.RMSNorm(hidden, config.rms_norm_eps)
        self.ff_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.ff_out = nn.Linear(inner, hidden, bias=False)

    def attention(self, hidden: Tensor, start: int, cache: Cache | None) -> Tensor:
        """hidden: [..., length, hidden] -> the same shape; every query sees all."""
        query, key, value = (
            project(hidden).unflatten(-1, (-1, self.dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (rotate(heads, self.theta, start) for heads in (query, key))
        if cache is not None:
            key, value = cache.update(self.layer, start, key, value)
        parts = [heads.transpose(-3, -2) for heads in (query, key, value)]
        if hidden.ndim == 2:  # torch's fused kernel is for batches
            parts = [part.unsqueeze(0) for part in parts]
        mixed = functional.scaled_dot_product_attention(*parts, enable_gqa=True)
        return self.attn_out(mixed.transpose(-3, -2).reshape(hidden.shape))

    def forward(self, hidden: Tensor, start: int, cache: Cache | None) -> Tensor:
        """hidden: [..., length, hidden] -> the same shape."""
        hidden = hidden + self.attention(self.attn_norm(hidden), start, cache)
        normed = self.ff_norm(hidden)
        inner = functional.silu(self.ff_proj(normed)) * self.up_proj(normed)
        return hidden + self.ff_out(inner)


class LLaDA(nn.Module):
    """Token ids to logits; row i predicts position i (no shift)."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        blocks = [Block(config, layer) for layer in range(config.n_layers)]
        parts = {
            "wte": nn.Embedding(config.embedding_size, config.d_model),
            "blocks": nn.ModuleList(blocks),
            "ln_f": nn.RMSNorm(config.d_model, config.rms_norm_eps),
            "ff_out": nn.Linear(config.d_model, config.embedding_size, bias=False),
        }
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(parts)})

    def forward(
        self, ids: Tensor, start: int = 0, cache: Cache | None = None
    ) -> Tensor:
        """Logits of every given position.

        Args:
            ids: [..., length] int64, at positions start .. start + length; with a
                cache one unbatched [length].
            cache: takes these positions' keys and values, and is what they attend to.

        Returns:
            logits: [..., length, embedding_size] float32.
        """
        parts = self.model["transformer"]
        hidden = parts["wte"](ids)
        for block in parts["blocks"]:
            hidden = block(hidden, start, cache)
        return parts["ff_out"](parts["ln_f"](hidden))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LLaDA":
        """Read config.json and model.safetensors (weights become float32)."""
        folder = Path(folder)
        raw = json.loads((folder / "config.json").read_text())
        model = cls(LLaDAConfig.from_dict(raw))
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({name: part.float() for name, part in weights.items()})
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype) -> None:
        """Write config.json and model.safetensors in the released layout."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: part.to(dtype) for name, part in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        raw = self.config.to_dict() | {"torch_dtype": str(dtype).removeprefix("torch.")}
        (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
