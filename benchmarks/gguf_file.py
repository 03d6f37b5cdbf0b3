"""The random LLaDA of checkpoints.py as llama.cpp reads it (`pip install gguf`)."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

TYPES = ("Q4_0", "Q8_0", "BF16", "F16")
NAMES = {
    "model.transformer.wte": "token_embd",
    "model.transformer.ln_f": "output_norm",
    "model.transformer.ff_out": "output",
    "model.transformer.blocks.": "blk.",
    ".attn_norm": ".attn_norm",
    ".q_proj": ".attn_q",
    ".k_proj": ".attn_k",
    ".v_proj": ".attn_v",
    ".attn_out": ".attn_output",
    ".ff_norm": ".ffn_norm",
    ".ff_proj": ".ffn_gate",
    ".up_proj": ".ffn_up",
    ".ff_out": ".ffn_down",
}
"""Parts of names, in an order in which none is taken for another."""
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write(checkpoint: Path, file: Path, kind: str) -> None:
    """All matrices in `kind`, one of `TYPES`. A letter of a prompt is a token."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llada")
    writer.add_block_count(config["n_layers"])
    writer.add_context_length(config["max_sequence_length"])
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["mlp_hidden_size"])
    writer.add_head_count(config["n_heads"])
    writer.add_head_count_kv(config["n_kv_heads"])
    writer.add_rope_dimension_count(config["d_model"] // config["n_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_causal_attention(False)
    writer.add_diffusion_shift_logits(False)
    add_tokenizer(writer, config["vocab_size"], config["mask_token_id"])
    quant = gguf.GGMLQuantizationType[kind]
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs, 1)
        values = weight.float().numpy()
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            values = permuted(values, config["n_heads"])
        if weight.dim() == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of llama.cpp's rotation: each with its partner beside it."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def add_tokenizer(writer: gguf.GGUFWriter, size: int, mask: int) -> None:
    """Printable ASCII, and words that no prompt has."""
    letters = [chr(code) for code in range(33, 127)]
    words = [f"word{number}" for number in range(size - len(letters) - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*letters, "zz", *words])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["z z"])
    writer.add_eos_token_id(size - 2)
    writer.add_mask_token_id(mask)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
