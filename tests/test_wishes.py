"""What a request may wish besides its rule: every family does it, and for it alone."""

import math
from itertools import chain
from typing import Any

import pytest

from tests.engines import Engine, Request, tokens_of, uses
from tests.golden_cases import golden_cases

pytestmark = pytest.mark.timeout(300)
D3LLM = {
    "dllm_algorithm": "d3llm",
    "dllm_block_length": 8,
    "dllm_add_block_threshold": 0.3,
}
RULES: dict[str, list[dict[str, Any]]] = {
    "fastdllm2-pub0": [{}],
    "nemotron-pub0": [{}, {"dllm_algorithm": "linear_spec"}],
    "diffullama-pub0": [
        {"dllm_steps": 12},
        {"dllm_algorithm": "maskgit_plus", "dllm_cache": "dual"},
    ],
    "llada-pub0": [D3LLM],
    "dream-pub0": [D3LLM],
}
"""Checkpoints and rules whose own tests do not ask for this."""
ENGINES = ("fastdllm2", "nemotron", "diffullama", "llada", "dream")
LENGTH = 24
WHOLE = 256
"""Tokens of the vocabulary."""
WISHES: list[dict[str, Any]] = [
    {"logprobs": WHOLE},
    {"temperature": 1.0, "logprobs": 2},
    {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 1.0, "logprobs": 2},
    {"temperature": 0.8, "top_k": 5, "min_p": 0.02, "logprobs": 2},
    {"logit_bias": {5: 100.0}, "logprobs": 2},
    {"allowed_token_ids": [7, 8, 9], "repetition_penalty": 1.3, "logprobs": 2},
]


def requests_of(engine: Engine) -> list[Request]:
    """Every wish with every rule."""
    cases = golden_cases(engine.spec.checkpoint, engine.spec.block)
    return [
        (case, {"max_tokens": LENGTH, "ignore_eos": True, "extra_args": rule, **wish})
        for rule in RULES[engine.spec.checkpoint]
        for case, wish in zip(cases, WISHES, strict=False)
    ]


def seeded(requests: list[Request], first: int) -> list[Request]:
    return [
        (case, {**wish, "seed": seed})
        for seed, (case, wish) in enumerate(requests, first)
    ]


def told(output: Any) -> list[tuple[int, float]]:
    """Tokens and their logprobs."""
    logprobs = output.outputs[0].logprobs
    return [
        (token, round(some[token].logprob, 3))
        for token, some in zip(tokens_of(output), logprobs, strict=True)
    ]


@uses(*ENGINES)
def test_a_wish_is_its_requests_own(engine: Engine) -> None:
    """Noise, penalties, bans or logprobs of a neighbour, or lost with its pages; a
    piece of a stream that is told twice or not at all."""
    requests = seeded(requests_of(engine), 0)
    together = [told(output) for output in engine.ask_each(requests)]
    alone = [told(engine.ask_each([request])[0]) for request in requests]
    assert alone == together
    disturbed = engine.ask_preempting(requests, every=2)
    assert [told(output) for output in disturbed] == together
    streams = engine.ask_streaming(requests)
    assert [[*chain(*map(told, pieces))] for pieces in streams] == together
    reseeded = engine.ask_each(seeded(requests, 50))
    for (_, wish), output, answer in zip(requests, reseeded, together, strict=True):
        assert told(output) != answer or "temperature" not in wish, wish


@uses(*ENGINES)
def test_a_wish_is_fulfilled_at_every_position(engine: Engine) -> None:
    """The row of another position has other logprobs, and another ban."""
    requests = seeded(requests_of(engine), 0)
    for (_, wish), output in zip(requests, engine.ask_each(requests), strict=True):
        tokens, logprobs = tokens_of(output), output.outputs[0].logprobs
        assert len(tokens) == LENGTH
        assert "logit_bias" not in wish or set(tokens) == {5}
        assert set(tokens) <= {*wish.get("allowed_token_ids", range(WHOLE))}
        if wish["logprobs"] < WHOLE:
            continue
        for token, some in zip(tokens, logprobs, strict=True):
            chances = [math.exp(one.logprob) for one in some.values()]
            assert some[token].rank == 1
            assert math.isclose(sum(chances), 1, abs_tol=1e-4)
