"""A checkpoint that lacks a tensor is refused, in every family; vLLM's real loader."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from vllm.config import set_current_vllm_config
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (  # noqa: E501
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.model_loader import get_model_loader
from vllm.utils.network_utils import get_open_port
from vllm.utils.torch_utils import set_default_torch_dtype

from tests import quantized
from tests.checkpoints import derived, in_shards
from tests.engine_config import engine_config
from tests.engines import Engine, OneAtATime
from tests.golden_cases import GOLDEN
from tests.models import test_llada_moe, test_sdar_moe, test_stable_diffcoder
from tests.specs import MODELS, EngineSpec
from tools import quantize
from vllm_dllm.models.block_diffusion import BlockDiffusion
from vllm_dllm.quantization.linear import Int8LinearMethod

pytestmark = pytest.mark.timeout(120)


def golden(name: str) -> Callable[[Path], Path]:
    return lambda folder: GOLDEN / name


def llada_moe(folder: Path) -> Path:
    return test_llada_moe.checkpoint(folder, "LLaDAMoEModelLM")


def bare_llada_moe(folder: Path) -> Path:
    return test_llada_moe.checkpoint(folder, "LLaDAMoEModel")


def diffullama(folder: Path) -> Path:
    return derived(folder, "diffullama-pub0", architectures=["DiffuLlamaModel"])


COMPLETE: dict[str, Callable[[Path], Path]] = {
    "dream": golden("dream-pub0"),
    "llada": golden("llada-pub0"),
    "llada2": golden("llada20-pub0"),
    "llada-moe": llada_moe,
    "bare-llada-moe": bare_llada_moe,
    "sdar": golden("sdar-pub0"),
    "sdar-moe": test_sdar_moe.checkpoint,
    "llada2.2": golden("llada22-pub1"),
    "fast-dllm-v2": golden("fastdllm2-pub0"),
    "nemotron": golden("nemotron-pub0"),
    "wedlm": golden("wedlm-pub0"),
    "diffullama": diffullama,
    "stable-diffcoder": test_stable_diffcoder.whole_checkpoint,
}
LACKING = {
    "dream": ["model.layers.1.self_attn.k_proj.bias", "lm_head.weight"],
    "llada": [
        "model.transformer.wte.weight",
        "model.transformer.blocks.0.ff_norm.weight",
        "model.transformer.blocks.1.q_proj.weight",
        "model.transformer.blocks.1.ff_out.weight",
        "model.transformer.ff_out.weight",
    ],
    "llada2": [
        "model.word_embeddings.weight",
        "model.layers.1.mlp.experts.3.up_proj.weight",
        "model.layers.2.mlp.gate.expert_bias",
        "lm_head.weight",
    ],
    "llada-moe": ["model.layers.2.mlp.experts.7.down_proj.weight", "lm_head.weight"],
    "bare-llada-moe": [
        "model.layers.1.mlp.expert_bias",
        "model.layers.2.mlp.shared_expert.gate_proj.weight",
    ],
    "sdar": ["model.layers.0.mlp.gate_proj.weight", "model.norm.weight"],
    "sdar-moe": ["model.embed_tokens.weight", "model.layers.1.mlp.gate.weight"],
    "llada2.2": ["model.layers.2.mlp.gate.expert_bias", "lm_head.weight"],
    "fast-dllm-v2": ["model.layers.1.self_attn.q_proj.bias", "lm_head.weight"],
    "nemotron": [
        "encoder.embed_tokens.weight",
        "encoder.layers.1.self_attn.v_proj.weight",
        "diffusion_head.weight",
    ],
    "wedlm": ["model.layers.0.self_attn.k_norm.weight", "lm_head.weight"],
    "diffullama": ["model.layers.2.mlp.up_proj.weight", "lm_head.weight"],
    "stable-diffcoder": ["model.layers.2.self_attn.o_proj.weight", "lm_head.weight"],
}
"""Family -> tensors that its model is to be loaded without, in the model's order."""
IN_CHECKPOINT = {
    "model.layers.1.mlp.expert_bias": "layers.1.mlp.expert_bias",
    "model.layers.2.mlp.shared_expert.gate_proj.weight": (
        "layers.2.shared_expert.gate_proj.weight"
    ),
}
"""Names of a checkpoint that are not the released ones."""


@pytest.fixture(scope="module")
def one_rank(running: OneAtATime) -> Iterator[None]:
    """What a worker sets up before it loads a model."""
    running.close()
    address = f"tcp://127.0.0.1:{get_open_port()}"
    # With experts, or there is no group of ranks that share them.
    with set_current_vllm_config(engine_config(GOLDEN / "llada20-pub0")):
        init_distributed_environment(1, 0, address, 0, "gloo")
        initialize_model_parallel(1, 1)
        yield
    cleanup_dist_env_and_memory()


def load(folder: Path) -> BlockDiffusion:
    config = engine_config(folder, dtype="bfloat16")
    loader = get_model_loader(config.load_config)
    with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
        model = loader.create_model(config, config.model_config)
    loader.load_weights(model, config.model_config)
    return model


def ready(folder: Path, **options: Any) -> torch.nn.Module:
    """The model as a worker has it, with its weights in their kernels' form."""
    config = engine_config(folder, dtype="float32", **options)
    loader = get_model_loader(config.load_config)
    with set_current_vllm_config(config):
        return loader.load_model(config, config.model_config)


def without(base: Path, folder: Path, pattern: str, **changes: Any) -> Path:
    """A copy of the checkpoint that lacks the tensors of this pattern."""
    weights = load_file(base / "model.safetensors")
    left = {name: w for name, w in weights.items() if not re.fullmatch(pattern, name)}
    assert len(left) < len(weights)
    return derived(folder, str(base), left, **changes)


def tied(base: Path, folder: Path) -> Path:
    """A copy whose head is the embedding."""
    return without(base, folder, "lm_head.weight", tie_word_embeddings=True)


@pytest.mark.parametrize("family", COMPLETE)
def test_what_a_checkpoint_lacks_is_named(
    family: str, tmp_path: Path, one_rank: None
) -> None:
    """A model with a random head starts, and answers nonsense without a word."""
    complete = COMPLETE[family](tmp_path / "complete")
    load(complete).refuse_incomplete()
    lacking = LACKING[family]
    names = [re.escape(IN_CHECKPOINT.get(name, name)) for name in lacking]
    model = load(without(complete, tmp_path / "lacking", "|".join(names)))
    with pytest.raises(ValueError, match=re.escape(", ".join(lacking))):
        model.refuse_incomplete()


@pytest.mark.parametrize("family", COMPLETE)
def test_shards_are_read_as_the_whole(
    family: str, tmp_path: Path, one_rank: None
) -> None:
    """Every released checkpoint comes in parts; parts of a layer that is one tensor
    here may be in two of them."""
    complete = COMPLETE[family](tmp_path / "complete")
    parts = derived(tmp_path / "parts", str(complete))
    in_shards(parts, load_file(complete / "model.safetensors"))
    assert not (parts / "model.safetensors").exists()
    expected, found = load(complete), load(parts)
    found.refuse_incomplete()
    tensors = dict(found.named_parameters())
    for name, weight in expected.named_parameters():
        assert torch.equal(weight, tensors.pop(name)), name
    assert not tensors


@pytest.mark.parametrize("family", [*COMPLETE, "tied"])
def test_int8_that_was_stored_is_int8_that_is_made(
    family: str, tmp_path: Path, one_rank: None
) -> None:
    """A layer that is left out, or rounded otherwise, answers otherwise."""
    if family == "tied":
        base = tied(GOLDEN / "sdar-pub0", tmp_path / "base")
    else:
        base = COMPLETE[family](tmp_path / "base")
    quantize.main([str(base), str(tmp_path / "stored")])
    stored = dict(ready(tmp_path / "stored").named_modules())
    for name, expected in ready(base, quantization="dllm_int8").named_modules():
        method = getattr(expected, "quant_method", None)
        found = getattr(stored[name], "quant_method", None)
        is_int8 = isinstance(method, Int8LinearMethod)
        assert isinstance(found, CompressedTensorsLinearMethod) == is_int8, name
        if is_int8:
            x = torch.randn(3, expected.input_size_per_partition)
            assert torch.equal(found.apply(stored[name], x), method.apply(expected, x))


def test_only_the_first_of_many_are_named(tmp_path: Path, one_rank: None) -> None:
    """A message of a thousand names hides what it says."""
    model = load(without(GOLDEN / "sdar-pub0", tmp_path / "m", r".*layers\.1\..*"))
    with pytest.raises(ValueError, match=r"k_proj.* and 6 more tensors, which"):
        model.refuse_incomplete()


@pytest.mark.parametrize(
    ("base", "changes", "named"),
    [
        ("sdar-pub0", {"vocab_size": 300}, "lm_head.weight of shape [256, 128]"),
        ("llada-pub0", {"n_layers": 2}, "model.transformer.blocks.2."),
        ("llada20-pub0", {"num_experts": 8, "n_group": 2}, "layers.1.mlp.gate."),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    base: str, changes: dict[str, Any], named: str, tmp_path: Path, one_rank: None
) -> None:
    """vLLM asserts shapes without a word."""
    with pytest.raises(ValueError, match=f"^the checkpoint's .*{re.escape(named)}"):
        load(derived(tmp_path / "model", base, **changes))


@pytest.mark.parametrize(
    "base", ["sdar-pub0", "fastdllm2-pub0", "wedlm-pub0", "dream-pub0"]
)
def test_a_tied_head_is_not_missed(base: str, tmp_path: Path, one_rank: None) -> None:
    """Tied checkpoints have no head of their own, and may have no more than that."""
    load(tied(GOLDEN / base, tmp_path / "a")).refuse_incomplete()


def test_a_router_may_do_without_a_bias_that_is_not_stated(
    tmp_path: Path, one_rank: None
) -> None:
    """The authors' router then has one of zeros; vLLM's has none, and is not built."""
    llada2, pattern = GOLDEN / "llada20-pub0", r".*\.gate\.expert_bias"
    unstated = {"moe_router_enable_expert_bias": False}
    model = load(without(llada2, tmp_path / "a", pattern, **unstated))
    model.refuse_incomplete()
    biases = [w for name, w in model.named_parameters() if "expert_bias" in name]
    assert biases and not torch.stack(biases).any()
    brought = load(derived(tmp_path / "b", "llada20-pub0", **unstated))
    assert dict(brought.named_parameters())["model.layers.1.mlp.gate.expert_bias"].any()


@pytest.mark.parametrize("scheme", [quantized.int4, quantized.gptq])
def test_a_quantized_layer_may_lack_nothing_either(
    scheme: Callable[..., quantized.Parts], tmp_path: Path, one_rank: None
) -> None:
    """vLLM looks at no tensor of a quantized checkpoint."""
    plain = r"wte|transformer\.ff_out"
    base = MODELS / "tiny-llada"
    whole = quantized.quantized(tmp_path / "whole", base, scheme, plain)
    load(whole).refuse_incomplete()
    lacking = r".*blocks\.1\.attn_out.*|.*blocks\.0\.ff_proj\.(weight_)?scales?"
    model = load(without(whole, tmp_path / "lacking", lacking))
    with pytest.raises(ValueError, match=r"0.ff_proj.\w*scale.*1.attn_out.\w+") as said:
        model.refuse_incomplete()
    assert "q_proj" not in str(said.value)


@pytest.mark.engine
def test_an_engine_refuses_what_its_model_lacks(
    running: OneAtATime, tmp_path: Path
) -> None:
    """The tests above would pass if nobody asked the model."""
    running.close()
    model = without(GOLDEN / "llada-pub0", tmp_path / "m", "model.transformer.ff_out.*")
    with pytest.raises(ValueError, match=r"lacks model.transformer.ff_out.weight,"):
        Engine(EngineSpec(str(model)))
