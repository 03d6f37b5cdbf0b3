"""Infilling: an answer between a prompt and what follows it."""

import json
import re
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.engine_config import resolved
from tests.engines import Engine, tokens_of, uses, uses_server
from tests.full_attention import BOTH, CACHES, case_of, failures, infilling_cases
from tests.golden_cases import Case, differences
from tests.servers import Server
from tests.specs import TIGHT_BUDGET
from vllm_dllm.request import wishes_of

pytestmark = pytest.mark.timeout(400)


@uses(*BOTH, "llada-tp2")
def test_an_infilling_answers_as_the_reference(engine: Engine) -> None:
    """The suffix has its own positions, right behind the last token of the answer, and
    every step must find its keys; a neighbour without one must not."""
    cases = infilling_cases(engine)
    assert failures(engine, cases) == []


@uses(*BOTH)
def test_an_infilling_depends_on_its_suffix(engine: Engine) -> None:
    """The test above would pass with a reference that reads no suffix either."""
    cases = [case for case in infilling_cases(engine) if case.suffix]
    free = engine.answers([replace(case, suffix=()) for case in cases])
    pairs = zip(cases, engine.answers(cases), free, strict=True)
    changed = [case for case, infilled, plain in pairs if infilled != plain]
    assert {(case.cache, bool(case.cfg_scale)) for case in changed} == {
        (cache, guided) for cache in CACHES for guided in (True, False)
    }


@uses(*BOTH)
def test_an_infilling_answers_alike_after_preemptions(engine: Engine) -> None:
    """A suffix that is lost with the slot is one of masks, or of another request."""
    cases = [case.answered() for case in infilling_cases(engine)]
    outputs = engine.ask_preempting([(case, {}) for case in cases], every=2)
    preempted = [
        bool(case.suffix)
        for case, output in zip(cases, outputs, strict=True)
        if output.metrics.num_preemptions > 1
    ]
    assert set(preempted) == {True, False}
    assert differences(cases, [tokens_of(output) for output in outputs]) == []


@uses("llada-tight")
def test_an_infilling_that_no_forward_can_hold_is_refused(engine: Engine) -> None:
    """It would wait for ever, and all others behind it."""
    from vllm.exceptions import VLLMValidationError

    good = replace(case_of(engine, 50, 21, 8), suffix=[7] * (TIGHT_BUDGET - 71))
    bad = replace(good, suffix=[7, *good.suffix])
    with pytest.raises(VLLMValidationError) as error:
        engine.ask([good, bad])
    said = str(error.value)
    numbers = ["50", "21", "suffix (90 tokens)", "161", str(TIGHT_BUDGET)]
    assert [number for number in numbers if number not in said] == [], said
    assert failures(engine, [good]) == []


@pytest.mark.parametrize(
    "checkpoint",
    ["sdar-pub0", "llada22-pub1", "fastdllm2-pub0", "nemotron-pub0", "wedlm-pub0"],
)
def test_who_sees_nothing_behind_an_answer_infills_nothing(checkpoint: str) -> None:
    """An answer that ignores what follows it looks like one that does not."""
    with pytest.raises(
        ValueError, match=r"dllm_suffix_token_ids=\[5\].*full attention"
    ):
        wishes_of({"dllm_suffix_token_ids": [5]}, resolved(checkpoint))


# Over HTTP

PROMPT, SUFFIX = "w12 w13 w14", "w15 w16"
GAP = 13
SUFFIX_FIELD = "dllm_suffix_token_ids"


def body_of(**fields: Any) -> dict[str, Any]:
    return {
        "model": Server.MODEL,
        "prompt": PROMPT,
        "max_tokens": GAP,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **fields,
    }


def token_ids(server: Server, text: str, **fields: Any) -> list[int]:
    body = {"prompt": text, "add_special_tokens": False, **fields}
    return httpx.post(f"{server.url}/tokenize", json=body, timeout=60).json()["tokens"]


def streamed_tokens(http: httpx.Client, body: dict[str, Any]) -> list[int]:
    answer = http.post("/v1/completions", json={**body, "stream": True})
    events = re.findall(r"^data: (\{.*)", answer.text, re.MULTILINE)
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return [token for choice in choices for token in choice["token_ids"] or []]


@uses_server(*BOTH)
def test_a_suffix_is_text_or_token_ids(server: Server) -> None:
    """However it is told, in a stream too, it means the same."""
    suffix = token_ids(server, SUFFIX)
    case = Case(
        server.spec.checkpoint,
        token_ids(server, PROMPT, add_special_tokens=True),
        GAP,
        None,
        "maskgit_plus",
        steps=GAP,
        suffix=suffix,
    )
    if server.spec.checkpoint == "llada-pub0":
        case = replace(case, algorithm="low_confidence", block_length=4, steps=None)
    body = body_of(algorithm=case.algorithm, block_length=case.block_length)
    infilled = {**body, "suffix": SUFFIX}
    expected = case.answered().tokens
    with httpx.Client(base_url=server.url, timeout=60) as http:

        def ask(asked: dict[str, Any]) -> list[list[int]]:
            answer = http.post("/v1/completions", json=asked).json()
            return [choice["token_ids"] for choice in answer["choices"]]

        assert ask(infilled) == [expected]
        assert ask({**infilled, "prompt": [PROMPT] * 2}) == [expected] * 2
        assert ask({**body, SUFFIX_FIELD: suffix}) == [expected]
        assert ask({**body, "vllm_xargs": {SUFFIX_FIELD: suffix}}) == [expected]
        assert streamed_tokens(http, infilled) == expected
        assert ask({**body, "suffix": ""}) == ask(body) != [expected]


@uses_server("llada")
def test_a_chat_may_have_a_suffix(server: Server) -> None:
    """What an assistant's turn ends with, say."""
    message = {"role": "user", "content": PROMPT}
    fields = {"model": Server.MODEL, "messages": [message], "max_tokens": 9}
    fields |= {"return_token_ids": True, "ignore_eos": True}
    suffix = token_ids(server, SUFFIX)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        url = "/v1/chat/completions"
        answers = [
            http.post(url, json={**fields, **more}).json()["choices"][0]["token_ids"]
            for more in (
                {"suffix": SUFFIX},
                {SUFFIX_FIELD: suffix},
                {"vllm_xargs": {SUFFIX_FIELD: suffix}},
                {},
            )
        ]
    assert answers[0] == answers[1] == answers[2] != answers[3]


@uses_server("llada")
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({SUFFIX_FIELD: "w12"}, [SUFFIX_FIELD, "'w12'"]),
        ({SUFFIX_FIELD: [5, -1]}, [SUFFIX_FIELD, "-1", "0"]),
        ({SUFFIX_FIELD: [5, 0.5]}, [SUFFIX_FIELD, "0.5"]),
        ({SUFFIX_FIELD: [5, 256]}, [SUFFIX_FIELD, "256", "0 to 255"]),
        ({SUFFIX_FIELD: [5, 2**70]}, [SUFFIX_FIELD, str(2**70)]),
        ({SUFFIX_FIELD: [5] * 600}, ["suffix (600 tokens)", "max_num_batched_tokens"]),
        ({"suffix": SUFFIX, SUFFIX_FIELD: [5]}, ["suffix", SUFFIX_FIELD, "differ"]),
        ({"suffix": SUFFIX, "echo": True}, ["suffix"]),
        ({"suffix": 5}, ["suffix"]),
    ],
)
def test_a_bad_suffix_is_refused_by_name(
    server: Server, fields: dict[str, Any], said: list[str]
) -> None:
    """A token id that no embedding has would end the engine for everyone."""
    url = f"{server.url}/v1/completions"
    for stream in (False, True):
        answer = httpx.post(url, json=body_of(stream=stream, **fields), timeout=60)
        assert answer.status_code == 400 or stream, answer.text
        assert '"code":400' in answer.text.replace(" ", "")
        assert [word for word in said if word not in answer.text] == [], answer.text
    assert httpx.post(url, json=body_of(), timeout=60).is_success


@uses_server("sdar16")
def test_a_block_causal_model_infills_nothing(server: Server) -> None:
    """Its blocks see nothing of what follows, and an answer would ignore it."""
    url = f"{server.url}/v1/completions"
    for fields in ({"suffix": SUFFIX}, {SUFFIX_FIELD: [5]}):
        answer = httpx.post(url, json=body_of(**fields), timeout=60)
        assert answer.status_code == 400
        assert "suffix" in answer.text and "block-causal" in answer.text
