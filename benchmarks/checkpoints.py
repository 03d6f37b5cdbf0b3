"""Random checkpoints of a real shape, made on the spot: speed needs no training."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.reference.llada import LLaDA, LLaDAConfig

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
TOKENIZER = GOLDEN / "sdar-pub0"
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
"""About 100 million parameters; grouped queries, as SDAR has them."""
LLADA_SHAPE = {
    "vocab_size": SHAPE["vocab_size"],
    "embedding_size": SHAPE["vocab_size"],
    "d_model": SHAPE["hidden_size"],
    "mlp_hidden_size": SHAPE["intermediate_size"],
    "n_layers": SHAPE["num_hidden_layers"],
    "n_heads": SHAPE["num_attention_heads"],
    "n_kv_heads": SHAPE["num_attention_heads"],
    "max_sequence_length": SHAPE["max_position_embeddings"],
    "mask_token_id": SHAPE["vocab_size"] - 1,
}
"""The same layers with a head of its own and all key heads, as LLaDA has them: about
130 million parameters."""


def make(folder: Path, block_size: int | None, shape: dict[str, Any] = SHAPE) -> Path:
    """A Qwen3 checkpoint, or with a block size the SDAR one with the same weights."""
    torch.manual_seed(0)
    config = Qwen3Config(**shape)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    fields = {**shape, "hidden_act": "silu", "rms_norm_eps": 1e-6}
    if block_size is None:
        fields.update(architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    else:
        fields.update(
            architectures=["SDARForCausalLM"],
            model_type="sdar",
            block_size=block_size,
            mask_token_id=shape["vocab_size"] - 1,
        )
    return _save(folder, weights, fields)


def make_llada(folder: Path) -> Path:
    """An LLaDA checkpoint in which masks differ, and some are surer than others.

    With plain random weights every query sees all keys alike, so that all masks get the
    same candidate, and of 32,000 tokens none is likely. So queries and keys are larger,
    which sharpens attention, and so is the head, which spreads the logits. Queries and
    keys larger than that would leave the tokens to bfloat16's rounding.
    """
    torch.manual_seed(0)
    stated = json.loads((GOLDEN / "llada-pub0" / "config.json").read_text())
    fields = {**stated, **LLADA_SHAPE}
    weights = LLaDA(LLaDAConfig.from_dict(fields)).state_dict()
    for name, weight in weights.items():
        if weight.dim() == 2:
            weight.normal_(std=0.02)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight *= 3
    weights["model.transformer.ff_out.weight"] *= 16
    weights = {name: weight.bfloat16() for name, weight in weights.items()}
    return _save(folder, weights, fields)


def _save(folder: Path, weights: dict[str, Tensor], fields: dict[str, Any]) -> Path:
    """The released layout, in bfloat16, with a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {**fields, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(fields, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder
