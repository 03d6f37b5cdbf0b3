"""Forced strings, with the grammars of real backends and a tokenizer that merges."""

import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from vllm.config import VllmConfig
from vllm.config.diffusion import DiffusionConfig
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.request import Request
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_types import (
    StructuredOutputBackend,
    StructuredOutputOptions,
)
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from vllm_dllm.runs import Run
from vllm_dllm.spelling import forced_spelling
from vllm_dllm.walk import Walker

CANVAS = 24
END = "<|end|>"
KEYS = ["name", "nature", "city_name", "größe", "日本", "is_known", "total number"]
VALUES = ["apple", "apple pie", "apricot", "größer", "日本語", "日国", "x", '"'[:0]]


def some_schema(rng: random.Random, depth: int = 0) -> tuple[dict[str, Any], list[Any]]:
    """A schema and some values that it allows."""
    kind = rng.choice(["enum", "number", "flag", "list", *["object"] * (3 - depth)])
    if depth == 0 or kind == "object":
        keys = rng.sample(KEYS, rng.randint(1, 4))
        parts = {key: some_schema(rng, depth + 1) for key in keys}
        schema = {
            "type": "object",
            "properties": {key: part for key, (part, _) in parts.items()},
            "required": keys,
            "additionalProperties": False,
        }
        made = [{k: rng.choice(v) for k, (_, v) in parts.items()} for _ in range(6)]
        return schema, made
    if kind == "enum":
        values = rng.sample(VALUES, rng.randint(1, 4))
        return {"enum": values}, values
    if kind == "number":
        return {"type": "integer"}, [0, 7, 12, -340]
    if kind == "flag":
        return {"type": "boolean"}, [True, False]
    part, values = some_schema(rng, 2)
    return {"type": "array", "items": part}, [[], values[:1], values[:3]]


def texts_of(values: list[Any]) -> list[str]:
    tight, loose = (",", ":"), (", ", ": ")
    return [
        json.dumps(value, ensure_ascii=False, separators=separators)
        for value in values
        for separators in (tight, loose)
    ]


def trained_tokenizer() -> Any:
    """Byte-level BPE of JSON as above, with tokens such as `":` and `{"name`."""
    rng = random.Random(0)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=9,
        show_progress=False,
    )
    made.train_from_iterator(
        [text for _ in range(60) for text in texts_of(some_schema(rng)[1])], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return trained_tokenizer()


def manager_of(backend: type[StructuredOutputBackend], tokenizer: Any) -> Any:
    """What a walk looks at of vLLM's manager."""
    config = VllmConfig(diffusion_config=DiffusionConfig(canvas_length=CANVAS))
    made = backend(config, tokenizer=tokenizer, vocab_size=len(tokenizer))
    return SimpleNamespace(backend=made, reasoner_cls=None)


@pytest.mark.parametrize("is_tight", [False, True])
def test_only_what_every_answer_is_written_with_is_forced(
    tokenizer: Any, is_tight: bool
) -> None:
    """A token that another answer would not have there is a choice taken from the
    model; one that no tokenizer writes shows it text that it never saw."""
    backend, places, forced = manager_of(XgrammarBackend, tokenizer).backend, 0, 0
    backend.disable_any_whitespace = is_tight
    for seed in range(20):
        schema, values = some_schema(random.Random(seed))
        texts = texts_of(values)[:: 2 if is_tight else 1]
        for text in dict.fromkeys(texts):
            tokens = tokenizer.encode(text, add_special_tokens=False)
            grammar = backend.compile_grammar(
                StructuredOutputOptions.JSON, json.dumps(schema), [0]
            )
            for begin, token in enumerate(tokens):
                before = tokens[begin - 1] if begin else 0
                found = forced_spelling(grammar, tokenizer, before)
                assert found == tokens[begin:][: len(found)], (schema, text, found)
                assert grammar.accept_tokens("r", [token])
                places, forced = places + 1, forced + bool(found)
    assert forced > places / 10, (forced, places)


def request_of(manager: Any, pattern: str, **sampling: Any) -> Request:
    params = SamplingParams(
        max_tokens=CANVAS,
        structured_outputs=StructuredOutputsParams(regex=pattern),
        **sampling,
    )
    params.update_from_generation_config({}, eos_token_id=0)
    request = Request("r", [5], params, None)
    request.structured_output_request.grammar = manager.backend.compile_grammar(
        StructuredOutputOptions.REGEX, pattern, params.all_stop_token_ids
    )
    return request


@pytest.mark.parametrize("backend", [XgrammarBackend, GuidanceBackend])
def test_a_run_takes_forced_strings_along(
    tokenizer: Any, backend: type[StructuredOutputBackend]
) -> None:
    """Each of their tokens would take a forward, as other tokens may stand there too:
    a part of a name, or all of it with what comes next."""
    manager = manager_of(backend, tokenizer)
    request = request_of(manager, 'city_name": (true|7)[0-9]{2}is_known')
    text, rest = (tokenizer.encode(some) for some in ('city_name": ', "true12is_known"))
    run = Walker(manager, CANVAS).run_of(request, [], CANVAS)
    assert run.tokens == (*text,) and run.forced == len(text)
    allowed = np.unpackbits(run.bits.view(np.uint8), axis=1, bitorder="little")
    assert [row.nonzero()[0].tolist() for row in allowed[:-1]] == [[t] for t in text]
    assert len(allowed) == len(text) + 1 and allowed[-1].sum() > 1
    proposed = [0] * len(text) + rest[:3]
    run = Walker(manager, CANVAS).run_of(request, proposed, CANVAS)
    assert run.tokens == (*text, *rest) and run.forced == len(text)


@pytest.mark.parametrize(
    "wish", [{"allowed_token_ids": [*range(300)]}, {"logit_bias": {7: 1.0}}]
)
def test_a_wish_about_tokens_is_about_those_of_strings_too(
    tokenizer: Any, wish: dict[str, Any]
) -> None:
    """A token that the request does not want would be forced, though the text can be
    written without it."""
    manager = manager_of(XgrammarBackend, tokenizer)
    assert (
        Walker(manager, CANVAS).run_of(
            request_of(manager, "city_name", **wish), [], CANVAS
        )
        == Run()
    )


def test_a_tokenizer_that_fails_forces_no_spelling(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exception would end the engine, with all requests."""

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("no such text")

    manager = manager_of(XgrammarBackend, tokenizer)
    request = request_of(manager, "is_known total")
    monkeypatch.setattr(tokenizer, "encode", fail)
    run = Walker(manager, CANVAS).run_of(request, [], CANVAS)
    assert run == Run() and run.bits is not None and len(run.bits) == 1
