"""Memory that `--quantization dllm_int8` takes while weights are loaded.

    python benchmarks/loading.py
    python benchmarks/loading.py --bfloat16

A random SDAR of 540 million parameters in shards of 250 MB, read by vLLM's loader as in
a worker, but without an engine: what the resident set is larger by than before, at its
peak and after. MiB; pages of the checkpoint that are mapped count.
"""

import argparse
import re
import tempfile
from pathlib import Path

import checkpoints
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.model_loader import get_model_loader
from vllm.utils.network_utils import get_open_port

from tests.engine_config import engine_config
from vllm_dllm.ops.heap import give_back

SHAPE = {
    **checkpoints.SHAPE,
    "vocab_size": 16000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 11,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
SHARD = "250MB"


def make(folder: Path) -> int:
    """The checkpoint, in shards; returns the bytes of the largest."""
    whole = checkpoints.make(folder, 4, SHAPE) / "model.safetensors"
    weights = load_file(whole)
    whole.unlink()
    save_torch_state_dict(weights, folder, max_shard_size=SHARD)
    return max(path.stat().st_size for path in folder.glob("*.safetensors"))


def memory(name: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    text = Path("/proc/self/status").read_text()
    [found] = re.findall(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(found)


def int8_bytes() -> int:
    """What weights take in int8: the embedding stays, and its head is a copy."""
    hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    heads = SHAPE["num_attention_heads"] + SHAPE["num_key_value_heads"]
    layer = 2 * hidden * heads * SHAPE["head_dim"] + 3 * hidden * inner
    table = SHAPE["vocab_size"] * hidden
    return SHAPE["num_hidden_layers"] * layer + 2 * table + table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bfloat16", action="store_true", help="weights as they are")
    args = parser.parse_args()
    options = {} if args.bfloat16 else {"quantization": "dllm_int8"}
    with tempfile.TemporaryDirectory() as folder:
        shard = make(Path(folder))
        config = engine_config(Path(folder), dtype="bfloat16", **options)
        loader = get_model_loader(config.load_config)
        with set_current_vllm_config(config), torch.inference_mode():
            address = f"tcp://127.0.0.1:{get_open_port()}"
            init_distributed_environment(1, 0, address, 0, "gloo")
            initialize_model_parallel(1, 1)
            give_back()
            before = memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            model = loader.load_model(config, config.model_config)
            peak, after = memory("VmHWM") - before, memory("VmRSS") - before
        del model
    found = {"int8 weights": int8_bytes(), "shard": shard, "peak": peak, "after": after}
    print({name: round(size / 2**20) for name, size in found.items()})


if __name__ == "__main__":
    main()
