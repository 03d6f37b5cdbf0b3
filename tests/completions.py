"""Greedy requests to /v1/completions as plain HTTP, and their answers."""

import json
from typing import Any

import httpx

from tests.servers import Server


def greedy_body(case: Any, **fields: Any) -> dict[str, Any]:
    """The request of a case, with more fields."""
    return {
        "model": Server.MODEL,
        "prompt": case.prompt,
        "max_tokens": case.gen_length,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **fields,
    }


def at_the_top(fields: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """`dllm_*` fields as they stand at the top level: without the prefix, or under the
    name that another server has for them."""
    return {
        names.get(name, name.removeprefix("dllm_")): value
        for name, value in fields.items()
    }


async def answer(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def streamed_text(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """All text of a stream."""
    text, body = "", body | {"stream": True}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ").strip()
            if data and data != "[DONE]":
                choices = json.loads(data)["choices"]
                text += "".join(choice["text"] for choice in choices)
    return text
