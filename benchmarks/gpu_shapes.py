"""The shapes and rules that benchmarks/gpu.py measures."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
BLOCK = 32
TOKENS = 64
"""New tokens of a request: two blocks."""
BLOCKS = TOKENS // BLOCK


@dataclass(frozen=True)
class Rule:
    """A rule that decodes from the left as many tokens with each forward."""

    tokens_per_forward: int
    cache: str | None = None
    """Of a full-attention model."""

    @property
    def name(self) -> str:
        return self.cache or "block"

    @property
    def steps(self) -> int:
        """Of a block."""
        return BLOCK // self.tokens_per_forward

    @property
    def extra_args(self) -> dict[str, Any]:
        rule = {"dllm_algorithm": "sequential", "dllm_steps": self.steps}
        if self.cache is None:
            return rule
        of_answer = {"dllm_steps": BLOCKS * self.steps, "dllm_block_length": BLOCK}
        return {**rule, **of_answer, "dllm_cache": self.cache}

    def rows(self, prompt: int) -> list[int]:
        """Positions that each step of one request forwards, but for its first."""
        rows, whole = [], prompt + TOKENS
        for block in range(BLOCKS):
            first = BLOCK if self.cache is None else whole
            again = {"none": whole, "prefix": TOKENS - block * BLOCK}
            rows += [first, *[again.get(self.name, BLOCK)] * (self.steps - 1)]
        return rows[1:]


MINI = {
    "vocab_size": 157184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "moe_intermediate_size": 512,
    "max_position_embeddings": 8192,
    "mask_token_id": 156895,
    "eos_token_id": 156892,
    "pad_token_id": 156892,
    "torch_dtype": "bfloat16",
}
"""LLaDA2.0-mini."""
TINY = {
    **MINI,
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "mask_token_id": 1023,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
LLADA = {
    "vocab_size": 126464,
    "embedding_size": 126464,
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "max_sequence_length": 4096,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
    "torch_dtype": "bfloat16",
}
"""LLaDA-8B."""
TINY_LLADA = {
    **LLADA,
    "vocab_size": 1024,
    "embedding_size": 1024,
    "d_model": 128,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 3,
    "mlp_hidden_size": 256,
    "mask_token_id": 1023,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CACHES = ("none", "prefix", "dual")


@dataclass(frozen=True)
class Plan:
    """What is measured with a shape."""

    golden: str
    """A folder of tests/golden, whose other settings and tokenizer are taken."""
    shape: dict[str, Any]
    rules: tuple[Rule, ...]
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    prefill_batches: tuple[int, ...]
    budget: int
    """max_num_batched_tokens."""

    def make_checkpoint(self, folder: Path) -> dict[str, Any]:
        """A config and a tokenizer; weights are not needed. The config, for `floor`."""
        golden = GOLDEN / self.golden
        config = {**json.loads((golden / "config.json").read_text()), **self.shape}
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(golden / name, folder / name)
        return dense(config) if "d_model" in config else config


def dense(config: dict[str, Any]) -> dict[str, Any]:
    """A LLaDA's config in LLaDA2's words: one without a layer of experts."""
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": config["mlp_hidden_size"],
        "num_hidden_layers": config["n_layers"],
        "first_k_dense_replace": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config["n_kv_heads"],
        "head_dim": config["d_model"] // config["n_heads"],
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "num_shared_experts": 0,
        "moe_intermediate_size": 0,
    }


BLOCK_RULES = tuple(map(Rule, (1, 2, 4)))
CACHE_RULES = tuple(Rule(2, cache) for cache in CACHES)
PLANS = {
    "mini": Plan(
        "llada20-pub0", MINI, BLOCK_RULES, (1, 8, 32, 128), (128, 4096), (1, 8), 8192
    ),
    "llada": Plan("llada-pub0", LLADA, CACHE_RULES, (1, 8, 32), (128,), (), 8192),
    "tiny": Plan("llada20-pub0", TINY, BLOCK_RULES, (1, 2), (64, 128), (1, 2), 512),
    "tiny-llada": Plan("llada-pub0", TINY_LLADA, CACHE_RULES, (1, 2), (64,), (), 512),
}
