"""tiny-llada2 as people serve it: with tool calls, and a tokenizer that knows more.

Tokens that the model does not have are refused on every way in; arguments of tools are
objects of the declared schema, whatever a client left out.
"""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import pytest

from tests.engines import OneAtATime
from tests.servers import Server
from tests.specs import MODELS, EngineSpec

pytestmark = [pytest.mark.timeout(300), pytest.mark.server]

TOKEN = 288
"""The first id that the model does not have."""
UNKNOWN = "<|added|>"
"""Its name in the tokenizer."""


def tokenizer_with_added_token(folder: Path) -> Path:
    """The tokenizer of tiny-llada2 with tokens up to that one."""
    unwanted = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(MODELS / "tiny-llada2", folder, ignore=unwanted)
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text())
    first = 1 + max(token["id"] for token in fields["added_tokens"])
    like = {**fields["added_tokens"][-1], "special": True}
    for token in range(first, TOKEN + 1):
        name = UNKNOWN if token == TOKEN else f"<|spare{token}|>"
        fields["added_tokens"].append({**like, "id": token, "content": name})
    file.write_text(json.dumps(fields))
    return folder


ONE_BY_ONE = {"algorithm": "sequential"}
BUSY = {"busy_threshold": 0.0, "busy_requests": 1}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    folder = tmp_path_factory.mktemp("added") / "tokenizer"
    options = {
        "tokenizer": str(tokenizer_with_added_token(folder)),
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        "dllm_config": json.dumps({"efforts": {"low": ONE_BY_ONE}, **BUSY}),
    }
    return EngineSpec(str(MODELS / "tiny-llada2"), 32, options, routes=True)


@pytest.fixture
def added(
    spec: EngineSpec, running: OneAtATime, tmp_path_factory: pytest.TempPathFactory
) -> Server:
    return running.server(spec, tmp_path_factory.mktemp("server"))


# Unknown tokens

USER = [{"role": "user", "content": f"Copy: {UNKNOWN}"}]
SHORT = {"model": Server.MODEL, "max_tokens": 4}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("/v1/completions", {"prompt": f"Copy: {UNKNOWN}"}),
    "ids": ("/v1/completions", {"prompt": [5, TOKEN, 6]}),
    "second of two": ("/v1/completions", {"prompt": ["Copy: a", UNKNOWN]}),
    "a huge id": ("/v1/completions", {"prompt": [5, 2**63]}),
    "a negative id": ("/v1/completions", {"prompt": [5, -1]}),
    "chat": ("/v1/chat/completions", {"messages": USER}),
    "batch": ("/v1/chat/completions/batch", {"messages": [USER, USER]}),
    "responses": ("/v1/responses", {"input": UNKNOWN, "max_output_tokens": 4}),
    "messages": ("/v1/messages", {"messages": USER}),
    "generate": ("/v1/generate", {"text": UNKNOWN}),
    "stop": ("/v1/completions", {"prompt": "Copy: a", "stop_token_ids": [TOKEN]}),
    "bias": ("/v1/completions", {"prompt": "Copy: a", "logit_bias": {f"{TOKEN}": 1}}),
    "allowed": ("/v1/completions", {"prompt": "Copy", "allowed_token_ids": [5, TOKEN]}),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", REFUSED)
async def test_a_token_without_an_embedding_is_a_400(
    added: Server, case: str, stream: bool
) -> None:
    """The look-up of one request would end the engine for everybody."""
    path, body = REFUSED[case]
    if stream and path.endswith("/batch"):
        pytest.skip("has no streams")
    async with httpx.AsyncClient(base_url=added.url, timeout=60) as http:
        answer = await http.post(path, json={**SHORT, **body, "stream": stream})
        assert answer.status_code == 400, answer.text
        assert ("greater_than" if case == "a negative id" else "vocab") in answer.text
        prompt = {"prompt": "Copy: abc", "max_tokens": 8, "model": Server.MODEL}
        after = await http.post("/v1/completions", json=prompt)
    assert after.status_code == 200, "the engine is gone"


async def test_such_a_token_may_be_a_bad_word(added: Server) -> None:
    """It is never answered anyway."""
    body = {**SHORT, "prompt": "Copy: a", "bad_words": [UNKNOWN, "b"]}
    async with httpx.AsyncClient(base_url=added.url, timeout=60) as http:
        answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text


async def test_such_a_token_can_be_looked_up(added: Server) -> None:
    """It is the tokenizer's, whatever the model knows."""
    async with httpx.AsyncClient(base_url=added.url, timeout=60) as http:
        answer = await http.post("/tokenize", json={"prompt": UNKNOWN})
    assert TOKEN in answer.json()["tokens"]


# Effort


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_the_knob_for_effort_reaches_the_decoding(
    added: Server, path: str
) -> None:
    """An official client has no other field for how fast an answer shall be."""
    prompt = [{"role": "user", "content": "Copy: abcdef"}]
    body = {"messages": prompt} if "chat" in path else {"prompt": "Copy: abcdef"}

    async def forwards(**fields: Any) -> tuple[int, int]:
        length = {"ignore_eos": True, "max_tokens": 32}
        answer = await post(added, path, **body, **length, **fields)
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        return usage["nfe"], usage["completion_tokens"]

    assert await forwards(temperature=0, reasoning_effort="low") == (32, 32)
    own = {"dllm_threshold": 0.0}
    assert (await forwards(reasoning_effort="low", **own))[0] < 4
    assert (await forwards(reasoning_effort="high", dllm_max_nfe=3))[0] <= 3


async def test_a_client_is_told_what_a_rush_changed(added: Server) -> None:
    """An answer that depends on others without a word cannot be explained."""
    fields = {"prompt": "Copy: abcdef", "max_tokens": 200, "ignore_eos": True}
    fields |= {"dllm_threshold": 1.0}
    path = "/v1/completions"
    before = busy_steps(added)
    alone = await post(added, path, **fields, dllm_adaptive=True)
    assert "nfe_busy" not in alone.json()["usage"] and busy_steps(added) == before
    wishes = (True, True, False, True)
    answers = await asyncio.gather(
        *(post(added, path, **fields, dllm_adaptive=wish) for wish in wishes)
    )
    usages = [answer.json()["usage"] for answer in answers]
    told = [usage.get("nfe_busy", 0) for usage in usages]
    assert told[2] == 0 and sum(told) > 0
    assert all(busy <= usage["nfe"] for busy, usage in zip(told, usages, strict=True))
    assert busy_steps(added) == before + sum(told)


def busy_steps(server: Server) -> float:
    with urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("vllm_dllm:busy_steps_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


# Structured output

RESULT = {
    "type": "object",
    "properties": {"result": {"type": "integer"}},
    "required": ["result"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dllm_threshold": 0.9},
        {"dllm_buffer_size": 2},
        {"dllm_algorithm": "joint_threshold", "dllm_edit_threshold": 0.5},
        {"dllm_algorithm": "entropy_bounded"},
    ],
)
async def test_json_comes_several_tokens_at_a_time(
    added: Server, fields: dict[str, Any]
) -> None:
    """Fields that a client sends with all its requests would fail the structured ones,
    or be ignored by them."""
    body = {
        "model": Server.MODEL,
        "messages": [{"role": "user", "content": "Solve: 12 + 30. Answer in JSON."}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": RESULT},
        },
        "temperature": 0,
        "max_tokens": 60,
        "vllm_xargs": fields,
    }
    async with httpx.AsyncClient(base_url=added.url, timeout=60) as http:
        whole = await http.post("/v1/chat/completions", json=body)
        assert whole.status_code == 200, whole.text
        streamed = await http.post(
            "/v1/chat/completions", json={**body, "stream": True}
        )
    assert whole.json()["choices"][0]["message"]["content"] == '{"result": 42}'
    usage = whole.json()["usage"]
    assert usage["completion_tokens"] >= 3 * usage["nfe"]
    pieces = [json.loads(x[5:]) for x in streamed.text.split("\n\n")[:-2] if x]
    texts = [piece["choices"][0]["delta"].get("content") for piece in pieces]
    assert "".join(text or "" for text in texts) == '{"result": 42}'


# Tools

EMPTY = {"type": "object", "properties": {}}
POINT = {
    "type": "object",
    "properties": {"x": {"enum": [1, 23]}, "y": {"$ref": "#/$defs/side"}},
    "required": ["x", "y"],
    "additionalProperties": False,
    "$defs": {"side": {"type": "object", "properties": {"far": {"type": "boolean"}}}},
}
CASES: dict[str, tuple[dict[str, Any] | None, bool | None]] = {
    "none": (None, None),
    "null": (None, False),
    "no keys": ({}, None),
    "no properties": (EMPTY, None),
    "any object": ({"type": "object"}, None),
    "a point": (POINT, None),
    "a strict point": (POINT, True),
    "no schema wanted": (POINT, False),
    "a string": ({"type": "string"}, None),
}
SUM = [{"role": "user", "content": "Solve: 12 + 30."}]
QUESTION = [{"role": "user", "content": "Copy: abc"}]


def is_right(arguments: Any, case: str) -> bool:
    if "point" in case:
        return arguments["x"] in (1, 23) and isinstance(arguments["y"], dict)
    wanted = case in ("none", "no keys", "no properties")
    return isinstance(arguments, dict) and (not wanted or arguments == {})


def tool(case: str) -> dict[str, Any]:
    parameters, strict = CASES[case]
    function: dict[str, Any] = {"name": "call", "parameters": parameters}
    if case == "none":
        del function["parameters"]
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


MAY_BE_LONG = ("null", "any object", "no schema wanted", "a string")
"""Of their arguments nothing says where they end."""
NO_SPACES = {"203": -100, "204": -100, "207": -100, "226": -100}
"""A small model likes spaces, of which JSON may have any number."""


async def post(server: Server, path: str, **body: Any) -> httpx.Response:
    body = {"model": Server.MODEL, "max_tokens": 200, "temperature": 1.0, **body}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        return await http.post(path, json=body)


async def test_an_answer_without_a_call_costs_what_it_costs_without_tools(
    added: Server,
) -> None:
    """Clients of strict tools send them with every request, and few need a call."""
    body = {"messages": SUM, "temperature": 0}
    path, tools = "/v1/chat/completions", [tool("a strict point")]
    plain = (await post(added, path, **body)).json()
    free = (await post(added, path, **body, tools=tools, tool_choice="auto")).json()
    assert free["choices"][0]["message"]["content"] == "12 + 30 = 42"
    assert plain["usage"]["nfe"] == free["usage"]["nfe"] == 1


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("choice", ["required", "named"])
@pytest.mark.parametrize("case", CASES)
async def test_a_required_call_has_an_object_for_its_arguments(
    added: Server, case: str, choice: str, seed: int
) -> None:
    """Arguments `false` are JSON, and no client's function takes them."""
    tools = [{"type": "function", "function": {"name": "other"}}, tool(case)]
    named = {"type": "function", "function": {"name": "call"}}
    answer = await post(
        added,
        "/v1/chat/completions",
        messages=QUESTION,
        tools=tools[1:] if choice == "required" else tools,
        tool_choice=named if choice == "named" else choice,
        parallel_tool_calls=False,
        logit_bias=NO_SPACES,
        seed=seed,
    )
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    if answer.json()["choices"][0]["finish_reason"] == "length":
        assert message["content"]
        assert case in MAY_BE_LONG
        return
    [call] = message["tool_calls"]
    assert call["function"]["name"] == "call"
    assert is_right(json.loads(call["function"]["arguments"]), case)


@pytest.mark.parametrize("choice", ["required", "named"])
async def test_arguments_that_are_streamed_are_those_of_a_whole_answer(
    added: Server, choice: str
) -> None:
    """Several tokens of a step are one piece for vLLM's parsers: an argument that is
    lost or doubled on the way is no JSON."""
    named = {"type": "function", "function": {"name": "call"}}
    fields = {"messages": QUESTION, "tools": [tool("a strict point")]}
    fields |= {"tool_choice": named if choice == "named" else choice}
    fields |= {"dllm_threshold": 0.1, "parallel_tool_calls": False}
    fields |= {"logit_bias": NO_SPACES}

    async def both(seed: int) -> tuple[dict[str, Any], httpx.Response]:
        path = "/v1/chat/completions"
        whole = await post(added, path, **fields, seed=seed)
        streamed = await post(added, path, **fields, seed=seed, stream=True)
        return whole.json()["choices"][0], streamed

    answers = await asyncio.gather(*map(both, range(12)))
    called = [pair for pair in answers if pair[0]["finish_reason"] != "length"]
    assert called
    for whole, streamed in called:
        [call] = whole["message"]["tool_calls"]
        chunks = [json.loads(x[5:]) for x in streamed.text.split("\n\n")[:-2] if x]
        told = [c["choices"][0]["delta"].get("tool_calls") or [] for c in chunks]
        functions = [one["function"] for some in told for one in some]
        said = "".join(one.get("arguments") or "" for one in functions)
        assert is_right(json.loads(said), "a point")
        assert json.loads(said) == json.loads(call["function"]["arguments"])
        assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "tool_calls")
