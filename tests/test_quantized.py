"""Quantized checkpoints and caches: vLLM's kernels under our models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import quantized
from tests.checkpoints import derived
from tests.engines import Engine, OneAtATime, tokens_of
from tests.golden_cases import Case
from tests.specs import LORA, MODELS, EngineSpec
from tools import quantize
from tools.tiny import skills, tokenizer

pytestmark = [pytest.mark.timeout(400), pytest.mark.engine]

PLAIN = {
    # The first output projection too: its name in a config is the released one.
    "tiny-llada": r"wte|transformer\.ff_out|blocks\.0\.attn_out",
    # vLLM has no quantized experts on CPU.
    "tiny-llada2": r"embed|lm_head|mlp",
}
FILES = [
    ("tiny-llada", quantized.int4, "CompressedTensorsLinearMethod"),
    ("tiny-llada", quantized.gptq, "AutoGPTQLinearMethod"),
    ("tiny-llada", quantized.awq, "AutoAWQMarlinLinearMethod"),
    ("tiny-llada2", quantized.int4, "CompressedTensorsLinearMethod"),
]
TENS = range(10, 40)


def linear_methods(worker: Any) -> dict[str, str]:
    """Run inside the worker: how each linear layer multiplies."""
    return {
        name: type(module.quant_method).__name__
        for name, module in worker.model_runner.model.named_modules()
        if name.endswith("_proj") or name.endswith(("query_key_value", "dense"))
    }


def methods_of_all(worker: Any) -> set[str]:
    modules = worker.model_runner.model.modules()
    return {type(getattr(module, "quant_method", None)).__name__ for module in modules}


def head_method(worker: Any) -> str:
    return type(worker.model_runner.model.lm_head.quant_method).__name__


def cache_bytes(worker: Any) -> int:
    """Run inside the worker: bytes of a number in the KV cache."""
    return worker.model_runner.kv_caches[0].element_size()


def engine_of(running: OneAtATime, model: Path, **options: Any) -> Engine:
    block = 32 if model.name == "tiny-llada2" else None
    options = {"dtype": "bfloat16", **options}
    return running.engine(EngineSpec(str(model), block, options))


def right_sums(engine: Engine, asked: int) -> int:
    """How many of its sums are right."""
    codec, right = tokenizer.build(), 0
    examples = skills.held_out_examples("add", asked, seed=3)
    prompts = [
        codec.encode(tokenizer.render([(one.question, "")])).ids for one in examples
    ]
    cases = [Case(engine.spec.checkpoint, p, 32, 32, "threshold") for p in prompts]
    rule = {"dllm_algorithm": "threshold", "dllm_threshold": 0.9}
    outputs = engine.ask(cases, extra_args=rule, ignore_eos=False)
    for example, output in zip(examples, outputs, strict=True):
        text = codec.decode(tokens_of(output), skip_special_tokens=True)
        right += text == example.answer
    engine.check_idle()
    return right


@pytest.mark.parametrize(
    ("base", "scheme", "method"), FILES, ids=lambda p: getattr(p, "__name__", p)
)
def test_a_quantized_checkpoint_answers_right(
    base: str,
    scheme: Callable[[Tensor], quantized.Parts],
    method: str,
    running: OneAtATime,
    tmp_path: Path,
) -> None:
    """Weights under other names, in another order or not there give other answers."""
    model = quantized.quantized(tmp_path / base, MODELS / base, scheme, PLAIN[base])
    engine = engine_of(running, model)
    [methods] = engine.llm.collective_rpc(linear_methods)
    assert method in methods.values()
    kept = methods.get("model.layers.0.self_attn.o_proj")
    assert kept in (None, "UnquantizedLinearMethod")
    assert right_sums(engine, 40) >= 37


def first_logprobs(engine: Engine) -> dict[tuple[int, int], float]:
    """Of the 20 likeliest first tokens after each of some prompts."""
    cases = [Case(engine.spec.checkpoint, [9, n, 7], 1, 4, "threshold") for n in TENS]
    outputs = engine.ask(cases, logprobs=20)
    return {
        (place, token): found.logprob
        for place, output in enumerate(outputs)
        for token, found in output.outputs[0].logprobs[0].items()
    }


def test_int8_that_was_stored_answers_as_int8_that_is_made(
    running: OneAtATime, tmp_path: Path
) -> None:
    """A head that is not found in int8, or inputs that are rounded otherwise."""
    base, stored = MODELS / "tiny-llada", tmp_path / "tiny-llada"
    quantize.main([str(base), str(stored)])
    engine = engine_of(running, stored)
    assert engine.llm.collective_rpc(head_method) == ["CompressedTensorsLinearMethod"]
    assert right_sums(engine, 40) >= 37
    found = first_logprobs(engine)
    assert found == first_logprobs(engine_of(running, base, quantization="dllm_int8"))


@pytest.mark.parametrize("base", PLAIN)
def test_weights_that_become_int8_answer_right(base: str, running: OneAtATime) -> None:
    """A layer that is not read to its end, or whose scales are another's, would not."""
    engine = engine_of(running, MODELS / base, quantization="dllm_int8")
    [methods] = engine.llm.collective_rpc(linear_methods)
    assert set(methods.values()) == {"Int8LinearMethod"}
    assert ("Int8ExpertsMethod" in engine.llm.collective_rpc(methods_of_all)[0]) == (
        base == "tiny-llada2"
    )
    assert right_sums(engine, 40) >= 37


def check_new_weights(engine: Engine, base: Path, folder: Path) -> None:
    """Other weights give other answers, and the first ones the first answers again."""
    draw = torch.Generator().manual_seed(0)
    weights = load_file(base / "model.safetensors")
    other = {
        name: weight * (1 + torch.rand(weight.shape, generator=draw) / 8)
        for name, weight in weights.items()
    }
    others = derived(folder / "other", str(base), other)
    first = first_logprobs(engine)
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(others)})
    assert first_logprobs(engine) != first
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(base)})
    assert first_logprobs(engine) == first


@pytest.mark.parametrize("base", PLAIN)
def test_new_weights_become_int8_as_the_first_ones_did(
    base: str, running: OneAtATime, tmp_path: Path
) -> None:
    """A kernel that keeps the address of the scales before, or another dtype."""
    engine = engine_of(running, MODELS / base, quantization="dllm_int8")
    check_new_weights(engine, MODELS / base, tmp_path)


def test_a_head_that_is_the_embedding_becomes_int8_too(
    running: OneAtATime, tmp_path: Path
) -> None:
    """The embedding itself stays as it is; and adapters find where a layer lies."""
    tied = derived(tmp_path / "tied", "sdar-pub0", tie_word_embeddings=True)
    plain = first_logprobs(running.engine(EngineSpec(str(tied), 4)))
    options = {"quantization": "dllm_int8", **LORA}
    engine = running.engine(EngineSpec(str(tied), 4, options))
    assert "Int8TiedHeadMethod" in engine.llm.collective_rpc(head_method)
    found = first_logprobs(engine)
    both = plain.keys() & found.keys()
    assert len(both) > 0.8 * len(plain)
    off = [abs(plain[key] - found[key]) for key in both]
    assert 1e-4 < sum(off) / len(off) < 0.15
    check_new_weights(engine, tied, tmp_path)


def test_a_quantized_cache_answers_right(running: OneAtATime) -> None:
    """Keys in 8 bits, of which vLLM chooses the scale."""
    engine = engine_of(running, MODELS / "tiny-llada2", kv_cache_dtype="fp8")
    assert engine.llm.collective_rpc(cache_bytes) == [1]
    assert right_sums(engine, 40) >= 37
