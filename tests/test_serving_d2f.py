"""D2F over HTTP, beside requests of full attention."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.completions import answer, at_the_top, greedy_body, streamed_text
from tests.d2f_cases import D2FCase, d2f_cases
from tests.engines import uses_server
from tests.golden_cases import golden_cases
from tests.servers import Server
from tests.test_serving_golden import by_clients

pytestmark = pytest.mark.timeout(400)
ALL = ("llada", "dream")
DIFFULEX = {"dllm_algorithm": "decoding_strategy", "dllm_threshold": "accept_threshold"}


def cases_of(server: Server) -> list[D2FCase]:
    return d2f_cases(server.spec.checkpoint)


def body_of(case: Any, **changes: Any) -> dict[str, Any]:
    """D2F fields at the top level, under Diffulex's names where it has one."""
    if isinstance(case, D2FCase):
        fields = at_the_top(case.fields, DIFFULEX) | case.sampling
    else:
        fields = {"vllm_xargs": case.fields}
    return greedy_body(case, **(fields | changes))


@uses_server(*ALL)
async def test_16_clients_get_golden_tokens_and_forwards(server: Server) -> None:
    """Requests of both kinds come and go in one batch."""
    others = [case for case in golden_cases(server.spec.checkpoint) if not case.suffix]
    cases = [*cases_of(server) * 3, *others[::3]]
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        got = await by_clients([answer(http, body_of(case)) for case in cases])
    for case, response in zip(cases, got, strict=True):
        assert response["choices"][0]["token_ids"] == case.tokens
        if isinstance(case, D2FCase):
            assert case.may_take(response["usage"]["nfe"])


@uses_server(*ALL)
async def test_streams_tell_stable_tokens_alone(server: Server) -> None:
    """A token behind a mask that is told early is told out of order; text behind a stop
    string is decoded in the same step, and must not be told."""
    cases = cases_of(server)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        texts = await asyncio.gather(
            *[streamed_text(http, body_of(case)) for case in cases]
        )
        whole = [await answer(http, body_of(case)) for case in cases]
        assert texts == [response["choices"][0]["text"] for response in whole]
        for case, text in zip(cases, texts, strict=True):
            words = text.split()
            stop = words[len(words) // 2]
            cut = await answer(http, body_of(case, stop=[stop]))
            assert cut["choices"][0]["text"] == text[: text.index(stop)]
            assert (
                await streamed_text(http, body_of(case, stop=[stop]))
                == text[: text.index(stop)]
            )


@uses_server("llada")
async def test_drafts_show_all_blocks_in_flight(server: Server) -> None:
    """A page that draws them would show the front block alone."""
    case = max(cases_of(server), key=lambda case: case.gen_length)
    body = body_of(case, stream=True, stream_mode="denoise")
    drafts: list[dict[str, Any]] = []
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        http.stream("POST", "/v1/generate", json=body) as response,
    ):
        assert response.status_code == 200
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ").strip()
            if data.startswith("{"):
                event = json.loads(data)
                drafts += [event] if event.get("type") == "draft" else []
    assert max(len(draft["token_ids"]) for draft in drafts) >= 3 * case.wishes.block
    for draft in drafts:
        for offset, token in enumerate(draft["token_ids"], start=draft["offset"]):
            assert token in (-1, case.tokens[offset])


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"dllm_cache": "dual"}, ["dllm_cache='dual'", "'d2f'"]),
    ({"cfg_scale": 1.5}, ["dllm_cfg_scale=1.5", "'d2f'"]),
    ({"dllm_suffix_token_ids": [5]}, ["dllm_suffix_token_ids", "'d2f'"]),
    ({"buffer_size": 4}, ["dllm_buffer_size=4", "not for d2f"]),
    ({"add_block_threshold": 0}, ["dllm_add_block_threshold=0", "above 0"]),
    ({"semi_complete_threshold": 1.5}, ["dllm_semi_complete_threshold=1.5"]),
    ({"steps": 3}, ["dllm_steps=3", "no meaning"]),
    ({"max_tokens": 900}, ["allowed: 512"]),
    ({"remask_threshold": 0.4}, ["remask_threshold=0.4"]),
]


@uses_server("llada")
@pytest.mark.parametrize("streams", [False, True])
async def test_what_cannot_be_is_refused_before_it_begins(
    server: Server, streams: bool
) -> None:
    """A field that is ignored, or refused without its name, cannot be put right."""
    good = {"model": Server.MODEL, "prompt": [9, 10], "decoding_strategy": "d2f"}
    good["max_tokens"] = 40
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        for body, words in BAD:
            asked = {**good, **body, "stream": streams}
            response = await http.post("/v1/completions", json=asked)
            for word in words:
                assert word in response.text, response.text
        got = await answer(http, good | {"return_token_ids": True, "ignore_eos": True})
        assert len(got["choices"][0]["token_ids"]) == 40
