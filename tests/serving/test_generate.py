"""Bodies of `/generate`: both shapes, as a request to `/v1/completions`."""

import json
from argparse import Namespace
from math import isnan
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from vllm_dllm.serving.drafts import MASK_CHARACTER, render, token_texts
from vllm_dllm.serving.endpoint import Endpoint
from vllm_dllm.serving.generate import (
    MAX_TOKENS,
    GenerateRequest,
    event,
)


def completion_of(**body: Any) -> dict[str, Any]:
    """The fields that were set."""
    return GenerateRequest(**body).to_completion().model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"prompt": "a"}, {"prompt": "a", "max_tokens": MAX_TOKENS, "stream": False}),
        ({"prompt": [1, 2], "max_tokens": 3}, {"prompt": [1, 2], "max_tokens": 3}),
        ({"text": "a", "stream": True}, {"prompt": "a", "stream": True}),
        ({"input_ids": [1]}, {"prompt": [1]}),
        (
            {
                "text": "a",
                "sampling_params": {"max_new_tokens": 5, "temperature": 0, "stop": "x"},
            },
            {"prompt": "a", "max_tokens": 5, "temperature": 0, "stop": "x"},
        ),
        (
            {"prompt": "a", "max_nfe": 4, "threshold": 0.5, "dllm_cache": "dual"},
            {"max_nfe": 4, "threshold": 0.5, "dllm_cache": "dual"},
        ),
        (
            {"prompt": "a", "top_p": 0.9, "sampling_params": {"top_p": 0.9}},
            {"top_p": 0.9},
        ),
    ],
)
def test_a_body_is_a_completion_request(
    body: dict[str, Any], fields: dict[str, Any]
) -> None:
    """A field that is dropped on the way is found out weeks later, if ever."""
    got = completion_of(**body)
    assert {name: got[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"regex": "b+", "json_schema": None}, {"regex": "b+"}),
        ({"json_schema": "{}"}, {"json": "{}"}),
        ({"ebnf": 'root ::= "b"'}, {"grammar": 'root ::= "b"'}),
    ],
)
def test_a_grammar_has_other_names_in_sglang(
    theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    """vLLM ignores a field that it does not know: the answer would follow nothing."""
    request = GenerateRequest(prompt="a", sampling_params=theirs).to_completion()
    assert request.structured_outputs == StructuredOutputsParams(**ours)


def test_drafts_are_sent_to_those_who_ask_for_them() -> None:
    """All others would pay for them."""
    drafts = {"stream": True, "stream_mode": "denoise"}
    assert completion_of(prompt="a", **drafts)["dllm_stream_drafts"] is True
    for other in ({"stream": True}, {"stream_mode": "block_append"}, {}):
        assert "dllm_stream_drafts" not in completion_of(prompt="a", **other)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "one of prompt, text and input_ids is needed, got 0"),
        ({"prompt": "a", "text": "a"}, "got 2"),
        ({"prompt": "a", "n": 2}, "n=2 is not supported by this route; allowed: 1"),
        ({"prompt": "a", "logprobs": 1}, "logprobs=1"),
        ({"prompt": "a", "stream_mode": "denoise"}, "needs stream=true"),
        (
            {"prompt": "a", "max_tokens": 4, "sampling_params": {"max_new_tokens": 5}},
            "sampling_params.max_new_tokens=5 and max_tokens=4",
        ),
        (
            {"prompt": "a", "sampling_params": {"regex": "b+", "ebnf": "x"}},
            "sampling_params.ebnf={'grammar': 'x'} and structured_outputs=",
        ),
        ({"prompt": "a", "sampling_params": {"ebnf": ["x"]}}, "ebnf=['x'] cannot be"),
        ({"prompt": "a", "sampling_params": {"json_schema": 1}}, "json_schema=1 "),
        (
            {"prompt": "a", "sampling_params": {"structured_outputs": "json"}},
            "structured_outputs='json' cannot be read; allowed: an object",
        ),
        ({"prompt": "a", "suffix": []}, "suffix=[]: Input should be a valid string"),
        (
            {"prompt": "a", "sampling_params": {"stop": 5}},
            "stop=5: Input should be a valid string or Input should be a valid list",
        ),
        (
            {"prompt": "a", "seed": 2**63},
            f"seed={2**63}: Input should be less than or equal to {2**63 - 1}; allowed",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(body: dict[str, Any], words: str) -> None:
    """A client would wait for something that does not come."""
    with pytest.raises(VLLMValidationError) as failure:
        completion_of(**body)
    assert words in str(failure.value)


def test_not_a_number_is_the_same_as_itself() -> None:
    """NaN differs from NaN: its refusal would be about two spellings, not the range."""
    theirs = {"dllm_threshold": float("nan")}
    assert isnan(completion_of(prompt="a", sampling_params=theirs)["dllm_threshold"])


@pytest.mark.parametrize(
    "body",
    [
        {"n": "x" * 1_000_000},
        {"logprobs": "x" * 1_000_000},
        {"top_k": 1, "sampling_params": {"top_k": "x" * 1_000_000}},
    ],
    ids=["n", "logprobs", "top_k"],
)
def test_a_long_value_is_not_echoed(body: dict[str, Any]) -> None:
    """A log, and an answer, of megabytes for a request that is refused."""
    with pytest.raises(VLLMValidationError) as failure:
        completion_of(prompt="a", **body)
    assert len(str(failure.value)) < 1000


class Letters:
    """A tokenizer whose token 0 is "a"."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


def test_a_draft_is_text_with_masks() -> None:
    """Masks in a run must stay as many as they are, and tokens in their places."""
    mask, letters = MASK_CHARACTER, Letters()
    assert render([], letters) == ""
    assert render([-1, -1], letters) == mask * 2
    assert render([0, 1, -1, 2], letters) == f"ab{mask}c"
    assert render([-1, 0, -1], letters) == f"{mask}a{mask}"
    assert token_texts([0, -1, 2], letters) == ["a", None, "c"]


def test_an_event_is_one_line_of_json() -> None:
    """A newline in a text would end the event."""
    line = event("append", text="a\nb", token_ids=[1])
    assert line.startswith("data: ") and line.endswith("\n\n")
    assert line.count("\n") == 2
    fields = json.loads(line.removeprefix("data: "))
    assert fields == {"type": "append", "text": "a\nb", "token_ids": [1]}


@pytest.fixture
def client() -> TestClient:
    """Of a server of another model, with our routes and vLLM's errors."""
    app = FastAPI()
    app.state.args = Namespace(
        enable_server_load_tracking=False, api_key=None, log_error_stack=False
    )
    app.state.enable_server_load_tracking = False
    init_exception_handler(app)
    Endpoint().attach_router(app)
    return TestClient(app)


def test_other_models_have_no_such_route(client: TestClient) -> None:
    """A server of another model would answer 500."""
    for path in ("/generate", "/v1/generate"):
        answer = client.post(path, json={"prompt": "a"})
        assert answer.status_code == 404
        assert "not a diffusion language model" in answer.text


@pytest.mark.parametrize("path", ["/generate", "/v1/generate", "/v1/decisions"])
@pytest.mark.parametrize(
    "body",
    [b"\xff", b"{'", b"[" * 100_000, b'"a"', b"5", b""],
    ids=["bytes", "no JSON", "deep", "text", "a number", "nothing"],
)
def test_a_body_that_is_none_is_refused_as_any_other(
    client: TestClient, path: str, body: bytes
) -> None:
    """A client reads an error by its fields, which FastAPI's answer has not."""
    headers = {"content-type": "application/json"}
    answer = client.post(path, content=body, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == 400 and "body" in error["message"]
