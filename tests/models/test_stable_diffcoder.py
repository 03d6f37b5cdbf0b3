"""Stable-DiffCoder against its reference; no golden checkpoint is one."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.sampling_params import StructuredOutputsParams

from tests.adapters import make_adapter
from tests.checkpoints import derived, in_shards
from tests.engine_config import engine_config
from tests.engines import Engine, OneAtATime, Request, tokens_of
from tests.golden_cases import EOS, Case, differences, too_many_forwards
from tests.reference.stable_diffcoder import (
    StableDiffcoder,
    StableDiffcoderConfig,
    generate,
)
from tests.specs import LORA, TWO_RANKS, EngineSpec
from vllm_dllm.config import DllmConfig
from vllm_dllm.request import resolve

CONFIG = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 500000.0,
    "eos_token_id": EOS,
}
MASK = 5
"""The authors' default: no file of a checkpoint says so."""
PAGE = 32
PROMPT_LENGTHS = (1, 3, 4, 5, 8, 15, 31, 64, 70)
GEN_LENGTHS = (1, 2, 12, 18, 35)
"""With the prompts, the last block is cut at each of its positions, or whole."""


def reference() -> StableDiffcoder:
    """A random model that is sure of some tokens and of others not."""
    model = StableDiffcoder(StableDiffcoderConfig.from_dict(CONFIG))
    model.load_state_dict(random_weights(model))
    return model.eval()


def random_weights(model: StableDiffcoder) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(20)
    weights = {}
    for name, weight in model.state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            weights[name] = 1 + 0.1 * noise
        elif "embed_tokens" in name:
            weights[name] = noise
        else:
            weights[name] = noise * 1.5 / weight.shape[1] ** 0.5
    return weights


def checkpoint(folder: Path) -> Path:
    """Write a checkpoint as the released ones are: in shards, and by name a Llama."""
    in_shards(whole_checkpoint(folder), reference().state_dict())
    return folder


def whole_checkpoint(folder: Path) -> Path:
    """The same in one file."""
    absent = ("mask_token_id", "block_size", "head_dim")
    own = {"AutoModelForCausalLM": "modeling_own.StableDiffcoderForCausalLM"}
    derived(
        folder,
        "sdar-pub0",
        reference().state_dict(),
        architectures=["StableDiffcoderForCausalLM"],
        model_type="llama",
        auto_map=own,
        rms_norm_eps=1e-6,
        **dict.fromkeys(absent),
        **CONFIG,
    )
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        file.write_text(file.read_text().replace("<|mask|>", "<|other|>"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("mask_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def diffcoder(
    request: pytest.FixtureRequest,
    running: OneAtATime,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    """One that is told nothing of decoding but the folder."""
    running.close()
    folder = checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")
    engine = Engine(EngineSpec(str(folder), options=request.param))
    try:
        yield engine
    finally:
        engine.close()


def with_options(*options: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("diffcoder", options, indirect=True, ids=str)


def requests() -> list[Case]:
    """Every rule with every prompt length, in more and in fewer steps; and with every
    end of an answer one of them."""
    random = Random(3)
    fields = (
        {"algorithm": "low_confidence"},
        {"algorithm": "low_confidence", "steps": 2},
        {"algorithm": "low_confidence", "steps": 3},
        {"algorithm": "threshold", "threshold": 0.4},
    )
    return [
        Case(
            "stable-diffcoder",
            [random.choice([*range(2, MASK), *range(6, 256)]) for _ in range(length)],
            gen_length,
            4,
            **rule,
        )
        for number, (length, gen_length) in enumerate(
            product(PROMPT_LENGTHS, GEN_LENGTHS)
        )
        for rule in (fields if gen_length == GEN_LENGTHS[-1] else [fields[number % 4]])
    ]


def with_answer(case: Case, model: StableDiffcoder) -> Case:
    common = (case.prompt, case.gen_length, case.steps, case.threshold)
    tokens, nfe = generate(model, *common)
    return replace(case, tokens=tokens, nfe=nfe)


@pytest.mark.engine
@with_options(LORA, pytest.param(TWO_RANKS, marks=pytest.mark.on_demand))
def test_a_mixed_batch_answers_as_the_reference(diffcoder: Engine) -> None:
    """A norm of heads, a wrong mask or a strict threshold would give other tokens; so
    would masks behind the answer, and the quota of a whole block beside a prompt."""
    model, engine = reference(), diffcoder
    cases = [with_answer(case, model) for case in requests()]
    long = [case for case in cases if case.gen_length == GEN_LENGTHS[-1]]
    assert len({str(case.tokens) for case in long}) > 2 * len(PROMPT_LENGTHS), (
        "the rules all answer the same: the model is too sure to tell them apart"
    )
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    assert too_many_forwards(cases, list(map(engine.forwards, outputs))) == []
    # After the own pages were lost, and from those of another.
    again = engine.ask_preempting([(case, {}) for case in cases[::3]], every=3)
    assert differences(cases[::3], [tokens_of(output) for output in again]) == []
    alone = [engine.ask([case])[0] for case in long[::4]]
    assert differences(long[::4], [tokens_of(output) for output in alone]) == []
    engine.ask(long)
    shared = engine.ask(long)
    assert differences(long, [tokens_of(output) for output in shared]) == []
    for case, output in zip(long, shared, strict=True):
        whole_pages = (len(case.prompt) - 1) // PAGE * PAGE
        assert output.num_cached_tokens == whole_pages, str(case)


@pytest.mark.engine
@with_options(LORA)
def test_prompts_come_in_parts(
    diffcoder: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that ends inside a block has keys that have not seen the rest of it."""
    core = diffcoder.llm.llm_engine.engine_core.engine_core
    monkeypatch.setattr(core.scheduler, "max_num_scheduled_tokens", 24)
    model = reference()
    cases = [with_answer(case, model) for case in requests()[3::7]]
    diffcoder.forget_prefixes()
    outputs = diffcoder.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []


@pytest.mark.engine
@with_options(LORA)
def test_a_wish_is_its_requests_own(diffcoder: Engine) -> None:
    """Noise or a grammar of a neighbour; a last block that is cut has fewer rows."""
    wishes: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 5, "logprobs": 256},
        {"temperature": 0.7, "top_p": 0.8, "seed": 6, "presence_penalty": 1.0},
        {"logit_bias": {9: 100.0}},
        {"structured_outputs": StructuredOutputsParams(regex="(w11|w12)(w13){6}")},
        {"logprobs": 256},
    ]
    mixed: list[Request] = [
        (case, {**wish, "ignore_eos": "structured_outputs" not in wish})
        for case, wish in zip(requests()[::9], wishes * 3, strict=False)
    ]
    together = diffcoder.ask_each(mixed)
    answers = [tokens_of(output) for output in together]
    assert [tokens_of(diffcoder.ask_each([one])[0]) for one in mixed] == answers
    disturbed = diffcoder.ask_preempting(mixed, every=2)
    assert [tokens_of(output) for output in disturbed] == answers
    for (case, wish), output in zip(mixed, together, strict=True):
        tokens, logprobs = tokens_of(output), output.outputs[0].logprobs
        if "logit_bias" in wish:
            assert tokens == [9] * case.gen_length
        if "structured_outputs" in wish:
            assert tokens in (
                [*some, *[13] * 6, EOS][: case.gen_length] for some in ([11], [12])
            )
        if logprobs is not None:
            for token, position in zip(tokens, logprobs, strict=True):
                total = sum(math.exp(one.logprob) for one in position.values())
                assert math.isclose(total, 1, abs_tol=1e-4)
                assert "temperature" in wish or position[token].rank == 1


@pytest.mark.engine
@with_options(LORA)
def test_requests_with_and_without_an_adapter(
    diffcoder: Engine, tmp_path: Path
) -> None:
    """An adapter that reaches rows of others, or misses rows of its own."""
    base = whole_checkpoint(tmp_path / "base")
    layers = ("q_proj", "o_proj", "up_proj")
    adapter = make_adapter(
        tmp_path / "adapter", str(base), 1, layers, model=StableDiffcoder
    )
    plain, asked = requests()[1::8], []
    for number, case in enumerate(plain):
        model = adapter.model if number % 2 else reference()
        answered = with_answer(case, model)
        if not number % 2 or with_answer(case, adapter.near).tokens == answered.tokens:
            asked.append((answered, adapter.request if number % 2 else None))
    assert len(asked) > 0.8 * len(plain)
    cases, adapters = zip(*asked, strict=True)
    outputs = diffcoder.ask_each([(case, {}) for case in cases], adapters)
    assert differences([*cases], [tokens_of(output) for output in outputs]) == []


def test_the_end_is_not_llamas(tmp_path: Path) -> None:
    """Where config.json names none, that of Llama would be some token of this model."""
    folder = checkpoint(tmp_path / "model")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["eos_token_id"]
    file.write_text(json.dumps(config))
    assert DllmConfig.of(engine_config(folder).model_config).facts.eos_token_id == EOS


def test_a_checkpoint_alone_is_decoded_as_its_authors_do(tmp_path: Path) -> None:
    """Their block, their mask and their rule are in no file of a checkpoint."""
    config = DllmConfig.of(engine_config(checkpoint(tmp_path / "m")).model_config)
    assert (config.block, config.mask_token_id) == (4, MASK)
    assert config.algorithm == "low_confidence"
    assert config.facts.rule_names["threshold"] == "confidence_threshold"
    several = {"dllm_algorithm": "threshold", "dllm_buffer_size": 2}
    assert resolve(several, config, 16).algorithm == "buffered_threshold"
