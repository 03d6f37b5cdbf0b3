"""Random checkpoints of a real shape, made on the spot: speed needs no training."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

TOKENIZER = Path(__file__).parents[1] / "tests" / "golden" / "sdar-pub0"
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


def make(folder: Path, block_size: int | None) -> Path:
    """A Qwen3 checkpoint, or with a block size the SDAR one with the same weights."""
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {**SHAPE, "hidden_act": "silu", "rms_norm_eps": 1e-6}
    fields["torch_dtype"] = "bfloat16"
    if block_size is None:
        fields.update(architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    else:
        fields.update(
            architectures=["SDARForCausalLM"],
            model_type="sdar",
            block_size=block_size,
            mask_token_id=SHAPE["vocab_size"] - 1,
        )
    (folder / "config.json").write_text(json.dumps(fields, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder
