"""Walks: what is assumed of a structured answer, with the grammars of real backends."""

import json
import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.config import VllmConfig
from vllm.config.diffusion import DiffusionConfig
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.tokenizers import get_tokenizer
from vllm.v1.request import Request
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_outlines import OutlinesBackend
from vllm.v1.structured_output.backend_types import (
    StructuredOutputBackend,
    StructuredOutputOptions,
)
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from tests.specs import MODELS
from vllm_dllm.runs import Run
from vllm_dllm.walk import Walker

CANVAS = 12
END = 1
LETTERS = "abcdefgh"


def manager_of(backend: type[StructuredOutputBackend]) -> Any:
    """What a walk looks at of vLLM's manager."""
    config = VllmConfig(diffusion_config=DiffusionConfig(canvas_length=CANVAS))
    tokenizer = get_tokenizer(str(MODELS / "tiny-llada2"))
    made = backend(config, tokenizer=tokenizer, vocab_size=len(tokenizer))
    return SimpleNamespace(backend=made, reasoner_cls=None)


@pytest.fixture(scope="module", params=[XgrammarBackend, GuidanceBackend])
def manager(request: pytest.FixtureRequest) -> Any:
    return manager_of(request.param)


def request_of(manager: Any, pattern: str, **sampling: Any) -> Request:
    params = SamplingParams(
        max_tokens=40,
        structured_outputs=StructuredOutputsParams(regex=pattern),
        **sampling,
    )
    params.update_from_generation_config({}, eos_token_id=END)
    request = Request("r", [5], params, None)
    request.structured_output_request.grammar = manager.backend.compile_grammar(
        StructuredOutputOptions.REGEX, pattern, params.all_stop_token_ids
    )
    return request


def ids_of(manager: Any, letters: Iterable[str]) -> list[int]:
    return [manager.backend.tokenizer.convert_tokens_to_ids(one) for one in letters]


def bits_along(
    manager: Any, request: Request, tokens: tuple[int, ...]
) -> list[list[int]]:
    """What a grammar allows behind none, one, ... and all of some tokens."""
    grammar, found = request.structured_output_request.grammar, []
    for token in [*tokens, None]:
        bits = manager.backend.allocate_token_bitmask(1)
        grammar.fill_bitmask(bits, 0)
        found.append(bits[0].tolist())
        assert token is None or grammar.accept_tokens("r", [token])
    grammar.rollback(len(tokens))
    return found


@pytest.mark.parametrize("seed", range(15))
def test_it_is_what_is_forced_and_what_was_proposed(manager: Any, seed: int) -> None:
    """Bits of another place would break the grammar; a run that stops early costs
    forwards; one of a changed grammar ends the request."""
    rng = random.Random(seed)
    words = [rng.sample(LETTERS, rng.choice([1, 1, 2, 3])) for _ in range(9)]
    request = request_of(manager, "".join(f"({'|'.join(some)})" for some in words))
    grammar, begin = request.structured_output_request.grammar, rng.randrange(4)
    said = "".join(rng.choice(some) for some in words[:begin])
    assert grammar.accept_tokens("r", ids_of(manager, said))
    proposed = [
        rng.choice(some if rng.random() < 0.8 else LETTERS) for some in words[begin:]
    ][: rng.randrange(9)]
    room = rng.randint(1, CANVAS)
    expected, forced = "", 0
    for ahead, some in enumerate(words[begin:][:room]):
        only = len(some) == 1
        if not only and (ahead >= len(proposed) or proposed[ahead] not in some):
            break
        forced += only and forced == ahead
        expected += some[0] if only else proposed[ahead]
    run, walker = Run(tuple(ids_of(manager, expected)), forced), Walker(manager, CANVAS)
    for _ in range(2):
        found = walker.run_of(request, ids_of(manager, proposed), room)
        assert found == run
        assert found.bits.tolist() == bits_along(manager, request, run.tokens)[:room]
    rest = "".join(some[-1] for some in words[begin:])
    assert grammar.accept_tokens("r", [*ids_of(manager, rest), END])
    assert (
        Walker(manager, CANVAS).run_of(request, ids_of(manager, proposed), room)
        == Run()
    )


def test_it_ends_with_the_answer(manager: Any) -> None:
    """What lies behind it is never handed out, and may lie behind all tables."""
    request = request_of(manager, "a{20}")
    request.max_tokens = 4
    assert Walker(manager, CANVAS).run_of(request, [], CANVAS) == Run(
        tuple(ids_of(manager, "aaaa")), 4
    )


TAG = {
    "type": "triggered_tags",
    "triggers": ["<call>", "{x"],
    "tags": [
        {"begin": "<call>", "content": {"type": "any_text"}, "end": "</call>"},
        {"begin": "{x", "content": {"type": "regex", "pattern": "y*"}, "end": "}"},
    ],
    "excludes": ["oh no"],
}


def test_text_is_free_until_a_call_may_begin() -> None:
    """An answer without a call would take a forward for each token; a token that may
    begin one must be known before what stands behind it is."""
    manager = manager_of(XgrammarBackend)
    tag = json.dumps({"type": "structural_tag", "format": TAG})
    request = request_of(manager, "a")
    request.sampling_params.structured_outputs = StructuredOutputsParams(
        structural_tag=tag
    )
    grammar = manager.backend.compile_grammar(
        StructuredOutputOptions.STRUCTURAL_TAG, tag, [END]
    )
    request.structured_output_request.grammar = grammar
    bits = manager.backend.allocate_token_bitmask(1)
    grammar.fill_bitmask(bits, 0)
    begin = bits.tolist()
    packed = Walker(manager, CANVAS).run_of(request, [], CANVAS).free
    assert packed is not None
    free = np.unpackbits(packed, bitorder="little")[: manager.backend.vocab_size]
    texts = [manager.backend.tokenizer.decode([token]) for token in range(len(free))]
    for token, text in enumerate(texts):
        assert free[token] == (not set("<{o") & set(text) and token != END)
        if free[token] and token in allowed_of(bits):
            assert grammar.accept_tokens("r", [token])
            grammar.fill_bitmask(bits, 0)
            assert bits.tolist() == begin
    assert free.sum() > len(free) / 2
    request.append_output_token_ids(ids_of(manager, "ab"))
    assert Walker(manager, CANVAS).run_of(request, [], CANVAS).free is not None
    request.append_output_token_ids(ids_of(manager, "<"))
    assert Walker(manager, CANVAS).run_of(request, [], CANVAS).free is None


def allowed_of(bits: Any) -> list[int]:
    return np.unpackbits(bits.numpy().view(np.uint8), bitorder="little").nonzero()[0]


def test_bad_words_take_one_token_a_step(manager: Any) -> None:
    """One in the middle of a run may be taken back, and what follows it would stand
    where the grammar does not allow it."""
    request = request_of(manager, "aaa")
    request.sampling_params._bad_words_token_ids = [ids_of(manager, "ab")]
    assert Walker(manager, CANVAS).run_of(request, [], CANVAS) == Run()


def test_a_grammar_that_takes_back_no_token_has_no_run() -> None:
    """A walk would end the engine, or leave the grammar somewhere else."""
    manager = manager_of(OutlinesBackend)
    request = request_of(manager, "aaa")
    assert (
        Walker(manager, CANVAS).run_of(request, ids_of(manager, "aaa"), CANVAS) == Run()
    )
