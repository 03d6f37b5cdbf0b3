"""LLaDA2-MoE (LLaDA2MoeModelLM) in plain PyTorch: the model, without any cache.

Independent of vLLM and of transformers, small enough to read in one go, trainable, and
reading and writing the released checkpoint layout. The caller gives the attention mask.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class LLaDA2Config:
    """The fields of config.json that decide the computation; the rest is in `extra`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    moe_intermediate_size: int
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    max_position_embeddings: int
    num_shared_experts: int = 1
    first_k_dense_replace: int = 1
    partial_rotary_factor: float = 0.5
    rope_theta: float = 600000.0
    rms_norm_eps: float = 1e-6
    routed_scaling_factor: float = 2.5
    block_size: int = 0
    expert_capacity: int = 0
    """LLaDA2.2: how many experts the tokens of a block share; 0 in older ones."""
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "LLaDA2Config":
        """Split config.json's fields into the ones read here and `extra`."""
        known = {item.name for item in fields(cls)} - {"extra"}
        extra = {key: value for key, value in raw.items() if key not in known}
        return cls(**{key: raw[key] for key in known & raw.keys()}, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The config.json this was read from, with the fields flat again."""
        raw = asdict(self)
        return {**raw.pop("extra"), **raw}


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * half dims of every head, NeoX halves; pass the rest.

    Args:
        heads: [batch, heads, length, head_dim].
        cos, sin: [length, half].
    """
    half = cos.shape[-1]
    first, second, rest = heads.split([half, half, heads.shape[-1] - 2 * half], -1)
    turned = (first * cos - second * sin, second * cos + first * sin, rest)
    return torch.cat(turned, -1)


class Attention(nn.Module):
    """Grouped-query attention with an RMS norm on each query and key head."""

    def __init__(self, config: LLaDA2Config) -> None:
        super().__init__()
        dim, heads = config.head_dim, config.num_attention_heads
        kv_heads = config.num_key_value_heads
        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        fused = (heads + 2 * kv_heads) * dim
        self.query_key_value = nn.Linear(config.hidden_size, fused, bias=False)
        self.dense = nn.Linear(heads * dim, config.hidden_size, bias=False)
        self.query_layernorm = nn.RMSNorm(dim, config.rms_norm_eps)
        self.key_layernorm = nn.RMSNorm(dim, config.rms_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """hidden: [batch, length, hidden] -> the same shape; mask as in the model."""
        batch, length, _ = hidden.shape
        heads = self.query_key_value(hidden).view(batch, length, -1, self.dim)
        query, key, value = heads.transpose(1, 2).split(
            [self.heads, self.kv_heads, self.kv_heads], 1
        )
        query = rotate(self.query_layernorm(query), cos, sin)
        key = rotate(self.key_layernorm(key), cos, sin)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, enable_gqa=True
        )
        return self.dense(mixed.transpose(1, 2).reshape(batch, length, -1))


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


class Gate(nn.Module):
    """Sigmoid router: top-k of some groups, or of the block's experts; the bias moves
    the choice only."""

    expert_bias: Tensor

    def __init__(self, config: LLaDA2Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.num_experts))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden: [tokens, hidden] -> weights and expert ids, both [tokens, top_k]."""
        config = self.config
        scores = torch.sigmoid(hidden.float() @ self.weight.float().T)
        with torch.no_grad():
            biased = scores + self.expert_bias
            if config.expert_capacity:
                biased = self.of_blocks(biased)
            else:
                biased = self.of_groups(biased)
            chosen = biased.topk(config.num_experts_per_tok, -1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * config.routed_scaling_factor, chosen

    def of_groups(self, biased: Tensor) -> Tensor:
        """[tokens, experts]: only those of each token's best groups."""
        config = self.config
        grouped = biased.view(len(biased), config.n_group, -1)
        best = grouped.topk(2, -1).values.sum(-1).topk(config.topk_group, -1)
        dropped = torch.ones_like(grouped[..., 0], dtype=torch.bool)
        dropped.scatter_(1, best.indices, False)
        return grouped.masked_fill(dropped[..., None], -torch.inf).flatten(1)

    def of_blocks(self, biased: Tensor) -> Tensor:
        """[tokens, experts]: only those that a token of the same block wants most.

        The tokens are those of one sequence, or of several of whole blocks.
        """
        kept = torch.full_like(biased, -torch.inf)
        for first in range(0, len(biased), self.config.block_size):
            rows = slice(first, first + self.config.block_size)
            wanted = biased[rows].amax(0).topk(self.config.expert_capacity).indices
            kept[rows, wanted] = biased[rows, wanted]
        return kept


class SparseMoE(nn.Module):
    """Routed experts plus an always-on shared expert.

    `expert_load` ([num_experts] int64) counts the last forward's tokens per expert, for
    the trainer's load balancing.
    """

    def __init__(self, config: LLaDA2Config) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        self.gate = Gate(config)
        # Stacked over experts, so that an optimiser sees one tensor per projection.
        self.gate_proj = nn.Parameter(torch.empty(config.num_experts, inner, hidden))
        self.up_proj = nn.Parameter(torch.empty(config.num_experts, inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, hidden, inner))
        self.shared_experts = MLP(hidden, inner * config.num_shared_experts)
        self.expert_load = torch.zeros(config.num_experts, dtype=torch.int64)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [batch, length, hidden] -> the same shape."""
        flat = hidden.flatten(0, 1)
        weights, chosen = self.gate(flat)
        order = chosen.flatten().argsort(stable=True)
        token = order // chosen.shape[1]
        self.expert_load = chosen.flatten().bincount(minlength=len(self.gate_proj))
        sorted_rows = flat[token].split(self.expert_load.tolist())
        parts = []
        for expert, rows in enumerate(sorted_rows):
            inner = functional.silu(rows @ self.gate_proj[expert].T)
            inner = inner * (rows @ self.up_proj[expert].T)
            parts.append(inner @ self.down_proj[expert].T)
        scaled = torch.cat(parts) * weights.flatten()[order, None].to(flat.dtype)
        routed = torch.zeros_like(flat).index_add(0, token, scaled)
        return self.shared_experts(hidden) + routed.view_as(hidden)


class DecoderLayer(nn.Module):
    """Pre-norm attention, then a dense MLP (first layers) or the experts."""

    def __init__(self, config: LLaDA2Config, index: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(
            config.hidden_size, config.rms_norm_eps
        )
        self.mlp: nn.Module = (
            MLP(config.hidden_size, config.intermediate_size)
            if index < config.first_k_dense_replace
            else SparseMoE(config)
        )

    def forward(self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """hidden: [batch, length, hidden] -> the same shape."""
        hidden = hidden + self.attention(self.input_layernorm(hidden), mask, cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Backbone(nn.Module):
    """Embeddings, layers and the last norm; the released names' `model.` prefix."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LLaDA2Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        half = int(config.head_dim * config.partial_rotary_factor) // 2
        inverse = config.rope_theta ** -(torch.arange(half).float() / half)
        angles = torch.arange(config.max_position_embeddings)[:, None] * inverse
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden: [batch, length, hidden], embeddings -> normed states, the same."""
        cos = self.cos[: hidden.shape[1]].to(hidden.dtype)
        sin = self.sin[: hidden.shape[1]].to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, mask, cos, sin)
        return self.norm(hidden)


class LLaDA2Moe(nn.Module):
    """Token ids and a dense mask to logits; row i predicts position i (no shift)."""

    def __init__(self, config: LLaDA2Config) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits of every position.

        Args:
            ids: [batch, length] int64; positions count from 0.
            mask: [length, length] or [batch, 1, length, length] bool, True = may see.

        Returns:
            logits: [batch, length, vocab] float32.
        """
        return self.read(self.embed(ids), mask)

    def embed(self, ids: Tensor) -> Tensor:
        """ids: [...] int64 -> [..., hidden]."""
        return self.model.word_embeddings(ids)

    def read(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """As `forward`, of embeddings: [batch, length, hidden]."""
        return self.lm_head(self.model(hidden, mask)).float()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LLaDA2Moe":
        """Read config.json and model.safetensors (weights become float32)."""
        folder = Path(folder)
        raw = json.loads((folder / "config.json").read_text())
        model = cls(LLaDA2Config.from_dict(raw))
        released = load_file(folder / "model.safetensors")
        count = model.config.num_experts
        state = {}
        for name in model.state_dict():
            if name in released:
                state[name] = released[name].float()
                continue
            prefix, projection = name.rsplit(".", 1)
            parts = [f"{prefix}.experts.{e}.{projection}.weight" for e in range(count)]
            state[name] = torch.stack([released[part].float() for part in parts])
        model.load_state_dict(state)
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype) -> None:
        """Write config.json and model.safetensors in the released layout."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        released = {}
        for name, tensor in self.state_dict().items():
            if tensor.dim() < 3:
                keep = torch.float32 if name.endswith("expert_bias") else dtype
                released[name] = tensor.to(keep).contiguous()
                continue
            prefix, projection = name.rsplit(".", 1)
            for expert, part in enumerate(tensor):
                part_name = f"{prefix}.experts.{expert}.{projection}.weight"
                released[part_name] = part.to(dtype).contiguous()
        save_file(released, folder / "model.safetensors", metadata={"format": "pt"})
        raw = self.config.to_dict() | {"torch_dtype": str(dtype).removeprefix("torch.")}
        (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
