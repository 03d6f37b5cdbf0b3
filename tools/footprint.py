"""What a checkpoint takes of memory, from its config.json alone: nothing is loaded.

vLLM's own model is built without memory (torch's meta device), so the weights are the
tensors that a server would make and the pages are those of its attention layers.

python -m tools.footprint CONFIG... --options '{"max_model_len": 4096}'
prints the footprint of each as a line of JSON.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BITS = {"fp8": 8.0, "int4": 4.0 + 16.0 / 128}
"""Of a quantized weight: with a scale for every channel, or for each group of 128."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes of one device, and what its requests take besides."""

    architecture: str
    dtype: str
    parameters: int
    kept: int
    """Of embeddings, head, norms and routers, which no method quantizes."""
    quantizable: int
    """Of the weights of linear layers and experts."""
    itemsize: int
    """Of one of their elements."""
    page: int
    """Of a page of the KV cache, all layers together."""
    page_size: int
    """Tokens in one."""
    longest: int
    """Tokens that a request of the longest length forwards, its canvas included."""
    kv_heads: int
    logits: int
    """Of the widest step's logits."""
    activations: int
    """About: of a step with as many tokens as one may have."""

    def weights(self, quantization: str | None = None) -> int:
        if quantization is None:
            return self.kept + self.quantizable
        elements = self.quantizable // self.itemsize
        return self.kept + int(elements * BITS[quantization] / 8)

    @property
    def kv_per_token(self) -> int:
        return self.page // self.page_size

    def pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    @property
    def kv_per_request(self) -> int:
        """Of a request of the longest length."""
        return self.pages_of(self.longest) * self.page


def footprint_of(config: Path, **engine_args: Any) -> Footprint:
    """The footprint of a checkpoint.

    Args:
        config: its config.json, or the folder that it is in.
        engine_args: of `vllm.EngineArgs`, such as `max_model_len`.

    Raises:
        ValueError: if vLLM or the plugin refuses the config, in their words.
    """
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs

    with tempfile.TemporaryDirectory() as folder:
        # What else lies beside it must not matter.
        shutil.copy(config / "config.json" if config.is_dir() else config, folder)
        # The mask may be named by a tokenizer that is not here, and takes no memory.
        own = {"dllm": {"mask_token_id": 0}}
        args = EngineArgs(
            model=folder, skip_tokenizer_init=True, additional_config=own, **engine_args
        )
        vllm_config = args.create_engine_config()
        with set_current_vllm_config(vllm_config):
            return measure(build(vllm_config), vllm_config)


def build(vllm_config: Any) -> Any:
    """vLLM's model with all its parameters and none of their memory."""
    import torch
    from vllm.distributed import parallel_state
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.network_utils import get_distributed_init_method, get_open_port
    from vllm.utils.torch_utils import set_default_torch_dtype

    if not parallel_state.model_parallel_is_initialized():
        place = get_distributed_init_method("127.0.0.1", get_open_port())
        parallel_state.init_distributed_environment(1, 0, place, 0, backend="gloo")
        parallel_state.initialize_model_parallel(backend="gloo")
    dtype = vllm_config.model_config.dtype
    with torch.device("meta"), set_default_torch_dtype(dtype):
        return initialize_model(vllm_config)


def measure(model: Any, vllm_config: Any) -> Footprint:
    """Add up what a built model consists of."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    from vllm_dllm.config import DllmConfig
    from vllm_dllm.regimes.registry import regime_of
    from vllm_dllm.worker.spans.registry import layout_class

    model_config, scheduler = vllm_config.model_config, vllm_config.scheduler_config
    config = DllmConfig.of(model_config)
    layers = vllm_config.compilation_config.static_forward_context.values()
    specs = [
        layer.get_kv_cache_spec(vllm_config)
        for layer in layers
        if isinstance(layer, AttentionLayerBase)
    ]
    parameters = list(model.parameters())
    quantizable = {id(weight): weight for weight in quantizable_weights(model)}
    total = sum(weight.nbytes for weight in parameters)
    inside = sum(weight.nbytes for weight in quantizable.values())
    itemsize = model_config.dtype.itemsize
    tokens = scheduler.max_num_batched_tokens
    limits = scheduler.max_num_seqs, tokens
    rows = layout_class(config.facts).max_logit_rows(config, *limits)
    longest = regime_of(config.facts).end_of_canvas(config, model_config.max_model_len)
    return Footprint(
        architecture=model_config.architecture,
        dtype=str(model_config.dtype).removeprefix("torch."),
        parameters=sum(weight.numel() for weight in parameters),
        kept=total - inside,
        quantizable=inside,
        itemsize=itemsize,
        page=sum(spec.page_size_bytes for spec in specs),
        page_size=vllm_config.cache_config.block_size,
        longest=longest,
        kv_heads=model_config.get_total_num_kv_heads(),
        logits=rows * model_config.get_vocab_size() * itemsize,
        activations=tokens * width(model, model_config.hf_config) * itemsize,
    )


def quantizable_weights(model: Any) -> list[Any]:
    """The weights of linear layers and experts, as vLLM's methods take them."""
    from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase
    from vllm.model_executor.layers.linear import LinearMethodBase, ReplicatedLinear

    methods = (FusedMoEMethodBase, LinearMethodBase)
    return [
        weight
        for module in model.modules()
        if isinstance(getattr(module, "quant_method", None), methods)
        and not isinstance(module, ReplicatedLinear)  # routers
        for weight in module.parameters(recurse=False)
        if weight.dim() > 1
    ]


def width(model: Any, hf_config: Any) -> int:
    """About as many elements as a layer keeps of a token: its input, what it adds to
    it, and the widest part of what is in between, twice."""
    widest = max(w.shape[-2] for w in quantizable_weights(model))
    chosen = getattr(hf_config, "num_experts_per_tok", None) or 1
    return 4 * hf_config.hidden_size + 2 * widest * chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--options", type=json.loads, default={}, help="of the engine")
    args = parser.parse_args()
    for config in args.configs:
        print(json.dumps(asdict(footprint_of(config, **args.options))))


if __name__ == "__main__":
    main()
