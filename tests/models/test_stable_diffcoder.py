"""Stable-DiffCoder against its reference; no golden checkpoint is one."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from tests.checkpoints import derived, in_shards
from tests.engine_config import engine_config
from tests.engines import Engine, OneAtATime, tokens_of
from tests.golden_cases import EOS, Case, differences, too_many_forwards
from tests.reference.stable_diffcoder import (
    StableDiffcoder,
    StableDiffcoderConfig,
    generate,
)
from tests.specs import EngineSpec
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
    absent = ("mask_token_id", "block_size", "head_dim")
    own = {"AutoModelForCausalLM": "modeling_own.StableDiffcoderForCausalLM"}
    derived(
        folder,
        "sdar-pub0",
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
    in_shards(folder, reference().state_dict())
    return folder


@pytest.fixture
def engine(running: OneAtATime, tmp_path: Path) -> Iterator[Engine]:
    """One that is told nothing but the folder."""
    running.close()
    engine = Engine(EngineSpec(str(checkpoint(tmp_path / "model"))))
    try:
        yield engine
    finally:
        engine.close()


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
def test_a_mixed_batch_answers_as_the_reference(engine: Engine) -> None:
    """A norm of heads, a wrong mask or a strict threshold would give other tokens; so
    would masks behind the answer, and the quota of a whole block beside a prompt."""
    model = reference()
    cases = [with_answer(case, model) for case in requests()]
    long = [case for case in cases if case.gen_length == GEN_LENGTHS[-1]]
    assert len({str(case.tokens) for case in long}) > 2 * len(PROMPT_LENGTHS), (
        "the rules all answer the same: the model is too sure to tell them apart"
    )
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    assert too_many_forwards(cases, list(map(engine.forwards, outputs))) == []
    # From shared pages of the prompts, and after the own ones were lost.
    again = engine.ask_preempting([(case, {}) for case in cases[::3]], every=3)
    assert differences(cases[::3], [tokens_of(output) for output in again]) == []
    alone = [tokens_of(engine.ask([case])[0]) for case in long[::4]]
    assert differences(long[::4], alone) == []


def test_a_checkpoint_alone_is_decoded_as_its_authors_do(tmp_path: Path) -> None:
    """Their block, their mask and their rule are in no file of a checkpoint."""
    config = DllmConfig.of(engine_config(checkpoint(tmp_path / "m")).model_config)
    assert (config.block, config.mask_token_id) == (4, MASK)
    assert config.algorithm == "low_confidence"
    assert config.facts.rule_names["threshold"] == "confidence_threshold"
    several = {"dllm_algorithm": "threshold", "dllm_buffer_size": 2}
    assert resolve(several, config, 16).algorithm == "buffered_threshold"
