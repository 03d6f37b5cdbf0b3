"""Arguments of tools are objects of the declared schema, whatever a client left out."""

import json
from typing import Any

import httpx
import pytest

from tests.engines import Server
from vllm_dllm.serving.tools import arguments_schema

pytestmark = pytest.mark.timeout(300)

EMPTY = {"type": "object", "properties": {}}
POINT = {
    "type": "object",
    "properties": {"x": {"enum": [1, 23]}, "y": {"$ref": "#/$defs/side"}},
    "required": ["x", "y"],
    "additionalProperties": False,
    "$defs": {"side": {"type": "object", "properties": {"far": {"type": "boolean"}}}},
}
NOT_ENFORCED = {"type": "object", "properties": {"a": {"type": "objekt"}}}


@pytest.mark.parametrize(
    ("declared", "schema"),
    [
        (None, EMPTY),
        ({}, EMPTY),
        (EMPTY, EMPTY),
        (POINT, POINT),
        ({"type": "object"}, {"type": "object"}),
        ({"description": "none"}, {"description": "none", "type": "object"}),
        ({"properties": {}}, EMPTY),
        ({"type": ["object", "null"], "properties": {}}, EMPTY),
        ({"anyOf": [EMPTY, {"type": "null"}]}, {"anyOf": [EMPTY]}),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": EMPTY}},
            {"$ref": "#/$defs/a", "$defs": {"a": EMPTY}},
        ),
        ({"$ref": "#/$defs/b", "$defs": {"a": EMPTY}}, {"type": "object"}),
        ({"$ref": "#/$ref", "$defs": {"a": EMPTY}}, {"type": "object"}),
        ({"$ref": "#"}, {"type": "object"}),
        ({"anyOf": [POINT, {"type": "string"}]}, {"type": "object"}),
        ({"allOf": [POINT, EMPTY]}, {"type": "object"}),
        ({"type": "string"}, {"type": "object"}),
        ({"type": "object", "enum": [False]}, {"type": "object"}),
        ({"properties": None}, {"type": "object"}),
        (NOT_ENFORCED, {"type": "object"}),
    ],
    ids=str,
)
def test_a_schema_is_followed_where_it_allows_objects_alone(
    declared: dict[str, Any] | None, schema: dict[str, Any]
) -> None:
    """Where it allows more, a call has arguments that no client can read."""
    assert arguments_schema(declared, None) == schema


def test_a_client_may_ask_for_no_schema_and_for_an_error() -> None:
    """`strict` is theirs: false for any object, true for this schema or none."""
    assert arguments_schema(POINT, False) == {"type": "object"}
    assert arguments_schema(NOT_ENFORCED, True) == NOT_ENFORCED


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


async def post(server: Server, path: str, **body: Any) -> httpx.Response:
    body = {"model": Server.MODEL, "max_tokens": 200, "temperature": 1.0, **body}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        return await http.post(path, json=body)


@pytest.mark.server
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
        seed=seed,
    )
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    if answer.json()["choices"][0]["finish_reason"] == "length":
        assert message["content"]
        return
    [call] = message["tool_calls"]
    assert call["function"]["name"] == "call"
    assert is_right(json.loads(call["function"]["arguments"]), case)
