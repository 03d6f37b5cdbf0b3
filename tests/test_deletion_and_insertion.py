"""LLaDA2.2 on an offline engine: its own defaults, random requests, odd wishes."""

import random
from dataclasses import replace
from typing import Any

import pytest

from tests.engines import Engine, tokens_of, uses
from tests.golden_cases import MASK, Case, differences, golden_cases

pytestmark = pytest.mark.timeout(300)
DELETE, SPLIT = 253, 254
NEVER = {MASK, DELETE, SPLIT}
AUTHORS = {"threshold": 0.5, "edit_threshold": 0.0, "max_post_steps": 16}


def cases_of(engine: Engine) -> list[Case]:
    return golden_cases(engine.spec.checkpoint, engine.spec.block)


def random_case(engine: Engine, seed: int) -> Case:
    rng = random.Random(seed)
    return Case(
        engine.spec.checkpoint,
        [rng.randrange(2, MASK) for _ in range(rng.randint(1, 70))],
        rng.randint(1, 40),
        engine.spec.block,
        "joint_threshold_indel",
        threshold=rng.choice([0.0, 0.2, 0.5, 0.8, 1.0]),
        edit_threshold=rng.choice([0.0, 0.1, 0.4, 0.9]),
        max_post_steps=rng.choice([0, 1, 2, 5, 16, 40]),
    )


@uses("moving8")
def test_a_request_that_says_nothing_is_decoded_as_by_the_authors(
    engine: Engine,
) -> None:
    """Served as if it were 2.1, it would need all fields in every request."""
    cases = [
        case
        for case in cases_of(engine)
        if {name: getattr(case, name) for name in AUTHORS} == AUTHORS
    ]
    assert len(cases) >= 3
    requests = [(case, {"extra_args": {}}) for case in cases]
    answers = [tokens_of(output) for output in engine.ask_each(requests)]
    assert differences(cases, answers) == []


@uses("moving8")
def test_random_requests_answer_as_the_reference(engine: Engine) -> None:
    """Golden cases have few combinations of lengths and thresholds."""
    cases = [random_case(engine, seed).answered() for seed in range(20)]
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    assert all(
        engine.forwards(output) <= case.nfe
        for case, output in zip(cases, outputs, strict=True)
    )


@uses("moving8", "moving32")
def test_an_answer_ends_with_a_stop_string_where_tokens_move(engine: Engine) -> None:
    """What a later step deletes, or moves behind the stop, would have been told."""
    cases = cases_of(engine)
    texts = [output.outputs[0].text for output in engine.ask(cases)]
    stops = [words[len(words) // 2] for words in map(str.split, texts)]
    ends = [text[: text.index(stop)] for text, stop in zip(texts, stops, strict=True)]
    assert sum(map(len, ends)) < 0.7 * sum(map(len, texts))
    requests = [(case, {"stop": stop}) for case, stop in zip(cases, stops, strict=True)]
    streams = engine.ask_streaming(requests)
    streamed = ["".join(p.outputs[0].text for p in pieces) for pieces in streams]
    assert streamed == ends
    for output, end, stop in zip(engine.ask_each(requests), ends, stops, strict=True):
        [answer] = output.outputs
        assert (answer.text, answer.stop_reason) == (end, stop)
        assert answer.finish_reason == "stop"


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 1.0, "n": 2},
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.3},
    {"temperature": 1.3, "presence_penalty": 1.0, "logit_bias": {DELETE: 5.0}},
    {"logit_bias": {SPLIT: 8.0}, "min_tokens": 9},
    {"allowed_token_ids": [7, 8, 9, DELETE, SPLIT]},
    {"allowed_token_ids": [7, SPLIT]},
]


@uses("moving8")
def test_no_wish_brings_what_moves_tokens_into_an_answer(engine: Engine) -> None:
    """They have no text; and one that is the likeliest in every step still ends."""
    from vllm.sampling_params import RequestOutputKind

    cases = [random_case(engine, seed) for seed in range(12)]
    others = [
        replace(case, algorithm="threshold", edit_threshold=None, max_post_steps=None)
        for case in cases[:6]
    ]
    requests = [
        (
            case,
            SAMPLING[number % len(SAMPLING)]
            | {
                "seed": number,
                "ignore_eos": True,
                "logprobs": 4,
                # Both answers of a request in one piece.
                "output_kind": RequestOutputKind.FINAL_ONLY,
            },
        )
        for number, case in enumerate([*cases, *others])
    ]
    outputs = engine.ask_each(requests)
    for (case, sampling), output in zip(requests, outputs, strict=True):
        for answer in output.outputs:
            assert len(answer.token_ids) == case.gen_length
            assert not NEVER & set(answer.token_ids)
            assert all(not NEVER & set(told) for told in answer.logprobs)
            allowed = sampling.get("allowed_token_ids")
            assert allowed is None or set(answer.token_ids) <= set(allowed)
    again = engine.ask_preempting(requests, 3)
    for first, second in zip(outputs, again, strict=True):
        for one, other in zip(first.outputs, second.outputs, strict=True):
            assert one.token_ids == other.token_ids


@uses("moving8")
@pytest.mark.parametrize(
    ("fields", "sampling", "message"),
    [
        ({"buffer_size": 2}, {}, "dllm_buffer_size=2 is not defined"),
        ({"steps": 4}, {}, "dllm_steps=4 has no meaning"),
        ({}, {"bad_words": ["w7"]}, "bad_words=.*moves tokens next to each other"),
        ({}, {"allowed_token_ids": [DELETE, MASK]}, "allows no token but"),
    ],
)
def test_what_has_no_meaning_with_moves_is_refused(
    engine: Engine, fields: dict[str, Any], sampling: dict[str, Any], message: str
) -> None:
    """A wish that is accepted and ignored is worse than a refusal."""
    case = cases_of(engine)[0]
    extra_args = {f"dllm_{name}": value for name, value in fields.items()}
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        engine.ask_each([(case, {**sampling, "extra_args": extra_args})])
