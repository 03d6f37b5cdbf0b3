"""Grammar backends besides xgrammar and guidance, over HTTP."""

import json
import re
from typing import Any

import httpx

from tests.engines import uses_server
from tests.servers import Server

SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["big", "small"]}, "count": {"enum": [1, 23]}},
    "required": ["size", "count"],
    "additionalProperties": False,
}
TAG = json.dumps(
    {"type": "structural_tag", "format": {"type": "regex", "pattern": "a|b"}}
)
TOOL = {"type": "function", "function": {"name": "order", "parameters": SCHEMA}}


def ask(server: Server, **fields: Any) -> httpx.Response:
    body = {
        "model": Server.MODEL,
        "messages": [{"role": "user", "content": "Copy: abc"}],
        "max_tokens": 120,
        "temperature": 1,
        "seed": 3,
    }
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, json=body | fields, timeout=120)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


@uses_server("tiny-llada2-outlines")
def test_outlines_is_obeyed(server: Server) -> None:
    """It takes back no token, and a walk along a run would leave it elsewhere."""
    schema = {"name": "order", "schema": SCHEMA}
    form = {"type": "json_schema", "json_schema": schema}
    found = json.loads(text_of(ask(server, response_format=form)))
    assert found["size"] in ("big", "small") and found["count"] in (1, 23)
    for wish, pattern in (
        ({"regex": r"[0-9]{3}-[a-f]{4}"}, r"[0-9]{3}-[a-f]{4}"),
        ({"choice": ["left", "straight on"]}, "left|straight on"),
    ):
        assert re.fullmatch(pattern, text_of(ask(server, structured_outputs=wish)))


@uses_server("tiny-llada2-outlines")
def test_what_outlines_does_not_know_is_a_400(server: Server) -> None:
    """A 500 says nothing to a client, and a retry would get another."""
    for wish in (
        {"structural_tag": TAG},
        {"json_object": True},
        {"grammar": "root ::= 1"},
    ):
        answer = ask(server, structured_outputs=wish)
        assert answer.status_code == 400, answer.text
        [name] = wish
        assert name in answer.text and "outlines" in answer.text.lower()
    answer = ask(server, tools=[TOOL], tool_choice="required")
    assert answer.status_code == 400 and "tools that are required" in answer.text
    assert text_of(ask(server, structured_outputs={"regex": "ok"})) == "ok"
    assert not server.held()


@uses_server("tiny-llada2-lm-format-enforcer")
def test_lm_format_enforcer_is_refused_where_it_does_not_load(server: Server) -> None:
    """The engine would end with the first grammar, and with it all requests."""
    answer = ask(server, structured_outputs={"regex": "ok"})
    assert answer.status_code == 400 and "lm-format-enforcer" in answer.text
    assert ask(server).status_code == 200
    assert not server.held()
