"""Structured output of the bundled models: what is written can be read."""

import json
import re
from typing import TYPE_CHECKING

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.engines import Engine, Request, tokens_of, uses
from tests.golden_cases import Case
from tools.tiny import tokenizer

if TYPE_CHECKING:
    from vllm import RequestOutput

pytestmark = pytest.mark.timeout(400)

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["ada", "grace"]},
        "years": {"type": "array", "items": {"enum": [1, 23]}, "maxItems": 3},
    },
    "required": ["name", "years"],
    "additionalProperties": False,
}


SUMS = """root ::= digit | digit " + " digit
digit ::= [0-9]
"""
FAST = {"dllm_algorithm": "threshold", "dllm_threshold": 0.1}


@uses("tiny-llada", "tiny-llada2-guidance")
def test_json_is_json_at_any_temperature(engine: Engine) -> None:
    """One token that a schema does not allow, and no client can read the answer."""
    prompt = tokenizer.build().encode(tokenizer.render([("Copy: abc", "")])).ids
    case = Case(engine.spec.checkpoint, prompt, 160, None, "sequential")
    kinds = [
        StructuredOutputsParams(json=SCHEMA),
        StructuredOutputsParams(choice=["left", "right", "straight on"]),
        StructuredOutputsParams(regex=r"\d{3}-[a-f]{4}"),
        StructuredOutputsParams(grammar=SUMS),
    ]
    requests: list[Request] = [
        (
            case,
            {
                "temperature": temperature,
                "seed": seed,
                "ignore_eos": False,
                "extra_args": None,
                "structured_outputs": kind,
            },
        )
        for kind in kinds
        for seed, temperature in enumerate((0.0, 1.0, 2.0))
    ]
    requests = [
        (case, {**sampling, "extra_args": fields})
        for case, sampling in requests
        for fields in (None, FAST, {"dllm_steps": 4})
    ]
    answers = [output.outputs[0] for output in engine.ask_each(requests)]
    texts = [answer.text for answer in answers]
    assert {answer.finish_reason for answer in answers} == {"stop"}
    for text in texts[:9]:
        answer = json.loads(text)
        assert answer.keys() == {"name", "years"} and len(answer["years"]) <= 3
        assert answer["name"] in ("ada", "grace")
    assert set(texts[9:18]) <= {"left", "right", "straight on"}
    assert all(re.fullmatch(r"\d{3}-[a-f]{4}", text) for text in texts[18:27])
    assert all(re.fullmatch(r"\d( \+ \d)?", text) for text in texts[27:])


@uses("tiny-llada", "tiny-llada2-guidance")
def test_any_object_is_one(engine: Engine) -> None:
    """`json_object` has no schema by which an answer would come to an end: one that
    ends is an object, and one that does not says so."""
    prompt = tokenizer.build().encode(
        tokenizer.render([("Solve: 12 + 30. Answer in JSON.", "")])
    )
    case = Case(engine.spec.checkpoint, prompt.ids, 60, None, "threshold")
    sampling = {
        "ignore_eos": False,
        "structured_outputs": StructuredOutputsParams(json_object=True),
    }
    requests: list[Request] = [
        (case, {**sampling, "temperature": heat, "seed": seed, "extra_args": fields})
        for seed, heat in enumerate((0.0, 1.0, 1.0, 2.0))
        for fields in (None, FAST)
    ]
    answers = [output.outputs[0] for output in engine.ask_each(requests)]
    ended = [answer.text for answer in answers if answer.finish_reason == "stop"]
    assert ended and all(isinstance(json.loads(text), dict) for text in ended)
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}


FORCED = r"(7|8)Sort the list (x|y)Write (3|4) in capitals\."
"""What is between the choices is one token each, or many."""


def with_forced_text(engine: Engine, pattern: str = FORCED) -> list[Request]:
    """Requests for such answers: greedy and drawn, sure and never sure."""
    vocabulary = tokenizer.build()
    prompt = vocabulary.encode(tokenizer.render([("Copy: abc", "")])).ids
    case = Case(engine.spec.checkpoint, prompt, 80, None, "threshold")
    sampling = {
        "ignore_eos": False,
        "logprobs": 0,
        "structured_outputs": StructuredOutputsParams(regex=pattern),
    }
    never_sure = {"dllm_algorithm": "threshold", "dllm_threshold": 1.0}
    return [
        (case, {**sampling, "temperature": heat, "seed": seed, "extra_args": fields})
        for seed, heat in enumerate((0.0, 1.0, 2.0))
        for fields in (FAST, never_sure)
    ]


@uses("tiny-llada", "tiny-llada2-guidance", "tiny-llada-tp2")
def test_forced_text_costs_no_forward(engine: Engine) -> None:
    """A text that is forced may be written in several tokens or in one, so that no
    token of it is: the model would be asked about each."""
    vocabulary = tokenizer.build()
    for output in engine.ask_each(with_forced_text(engine)):
        answer = output.outputs[0]
        *said, end = tokens_of(output)
        assert end == tokenizer.EOS_ID and said == vocabulary.encode(answer.text).ids
        assert len(said) == 6 and engine.forwards(output) <= 4
        assert [chances_of(output)[place] for place in (1, 3, 5)] == [0, 0, 0]


def chances_of(output: "RequestOutput") -> list[float]:
    rows = output.outputs[0].logprobs or []
    said = zip(tokens_of(output), rows, strict=True)
    return [row[token].logprob for token, row in said]


@uses("tiny-llada", "tiny-llada-tp2")
def test_preemption_does_not_change_forced_text(engine: Engine) -> None:
    """A text that is forced may be cut by it in the middle, and what is left be written
    in other tokens, or be decided by a model that was not shown it."""
    pattern = f"({FORCED})" + "{2}"
    requests = with_forced_text(engine) + with_forced_text(engine, pattern)
    whole = engine.ask_each(requests)
    for every in (1, 2):
        cut = engine.ask_preempting(requests, every=every)
        assert [*map(tokens_of, cut)] == [*map(tokens_of, whole)]
        for first, second in zip(whole, cut, strict=True):
            assert chances_of(second) == pytest.approx(chances_of(first), abs=1e-4)


@uses("tiny-llada")
def test_calls_in_free_text_are_whole(engine: Engine) -> None:
    """Text is written many tokens at a time; what was written behind the beginning of
    a call in the same step would be no call."""
    vocabulary = tokenizer.build()
    prompt = vocabulary.encode(tokenizer.render([("Copy: abc", "")])).ids
    case = Case(engine.spec.checkpoint, prompt, 80, None, "threshold")
    call = {
        "begin": "x(",
        "content": {"type": "regex", "pattern": "[0-9][0-9]"},
        "end": ")",
    }
    form = {"type": "triggered_tags", "triggers": ["x"], "tags": [call]}
    tag = json.dumps({"type": "structural_tag", "format": form})
    sampling = {
        "temperature": 1.5,
        "ignore_eos": False,
        "min_tokens": 60,
        "logit_bias": {vocabulary.token_to_id("x"): 5.0},
        "structured_outputs": StructuredOutputsParams(structural_tag=tag),
    }
    fields = [{"dllm_algorithm": "threshold", "dllm_threshold": t} for t in (0, 0.2)]
    requests: list[Request] = [
        (case, {**sampling, "seed": seed, "extra_args": fields[seed % 2]})
        for seed in range(12)
    ]
    outputs = engine.ask_each(requests)
    texts = [output.outputs[0].text for output in outputs]
    cut = r"(x(\([0-9]{0,2})?)?"
    for text in texts:
        assert re.fullmatch(rf"([^x]|x\([0-9][0-9]\))*{cut}", text, re.DOTALL), text
    assert sum(text.count("x") for text in texts) > 12
    forwards = sum(engine.forwards(output) for output in outputs)
    assert sum(len(tokens_of(output)) for output in outputs) > 1.3 * forwards
