"""Nemotron-Labs-Diffusion in plain PyTorch: Ministral's attention in SDAR's layers.

Rotations are YaRN's, without its factor on the angles' sines, and a query grows with
its position. Weight names are those of the released checkpoints.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.reference import sdar


@dataclass
class NemotronConfig(sdar.SDARConfig):
    """The fields of config.json that decide the computation."""

    rope_parameters: dict[str, Any] | None = None


class Attention(sdar.Attention):
    """Without norms of heads."""

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__(config)
        assert config.rope_parameters is not None
        self.rope = config.rope_parameters
        self.q_norm = self.k_norm = nn.Identity()

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden: [length, hidden] -> the same shape; mask as in the model."""
        query, key, value = (
            project(hidden).unflatten(-1, (-1, self.dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = self.rotate(query), self.rotate(key)
        query = query * self.growth(len(hidden))[:, None, None]
        share = query.shape[1] // key.shape[1]
        key, value = (heads.repeat_interleave(share, 1) for heads in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / self.dim**0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return self.o_proj(torch.einsum("hqk,khd->qhd", weights, value).flatten(1))

    def growth(self, length: int) -> Tensor:
        """[length] float32: what queries are multiplied with."""
        original = self.rope["original_max_position_embeddings"]
        times = torch.arange(length) // original
        return 1 + self.rope["llama_4_scaling_beta"] * torch.log(1 + times.float())

    def rotate(self, heads: Tensor) -> Tensor:
        """heads: [length, heads, dim] -> the same shape; in two halves."""
        angle = torch.arange(len(heads)).float()[:, None] * self.frequencies()
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        first, second = heads.chunk(2, dim=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat(turned, dim=-1)

    def frequencies(self) -> Tensor:
        """[dim / 2] float32: fast ones as they are, slow ones stretched by the factor,
        and a ramp between them."""
        theta, half = self.rope["rope_theta"], self.dim // 2
        plain = theta ** -(torch.arange(half).float() / half)

        def index_of(turns: float) -> float:
            """The frequency that turns so often within the original length."""
            length = self.rope["original_max_position_embeddings"]
            return half * math.log(length / (turns * 2 * math.pi)) / math.log(theta)

        low = max(math.floor(index_of(self.rope["beta_fast"])), 0)
        high = min(math.ceil(index_of(self.rope["beta_slow"])), self.dim - 1)
        ramp = ((torch.arange(half) - low) / max(high - low, 0.001)).clamp(0, 1)
        return plain * (1 - ramp) + plain / self.rope["factor"] * ramp


class Nemotron(sdar.SDAR):
    """Token ids and a dense mask to logits."""

    config_class = NemotronConfig

    def __init__(self, config: NemotronConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn = Attention(config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read config.json and model.safetensors (weights become float32)."""
        folder = Path(folder)
        raw = json.loads((folder / "config.json").read_text())
        model = cls(cls.config_class.from_dict(raw))
        weights = load_file(folder / "model.safetensors")
        places = {"encoder": "model", "diffusion_head": "lm_head"}
        named = {}
        for name, weight in weights.items():
            room, _, rest = name.partition(".")
            named[f"{places[room]}.{rest}"] = weight.float()
        model.load_state_dict(named)
        return model.eval()
