"""Several blocks in flight over HTTP."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.completions import answer, at_the_top, greedy_body, streamed_text
from tests.engines import uses_server
from tests.multi_block_cases import BufferCase, multi_block_cases
from tests.servers import Server
from tests.test_serving_golden import by_clients

pytestmark = pytest.mark.timeout(400)
ALL = ("sdar16", "editing32")


def cases_of(server: Server) -> list[BufferCase]:
    return multi_block_cases(server.spec.checkpoint, server.spec.block)


NAMES = {"dllm_threshold": "accept_threshold", "dllm_algorithm": "dllm_algorithm"}
"""Diffulex's, where it has one."""


def body_of(case: BufferCase, **changes: Any) -> dict[str, Any]:
    fields = at_the_top(case.fields, NAMES) | case.sampling
    return greedy_body(case, **(fields | changes))


@uses_server(*ALL)
async def test_16_clients_get_golden_tokens_and_forwards(server: Server) -> None:
    """Requests with one block and with several come and go in one batch."""
    cases = cases_of(server) * 4
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        got = await by_clients([answer(http, body_of(case)) for case in cases])
    for case, response in zip(cases, got, strict=True):
        assert response["choices"][0]["token_ids"] == case.tokens
        assert case.may_take(response["usage"]["nfe"])


@uses_server(*ALL)
async def test_streams_tell_stable_tokens_alone(server: Server) -> None:
    """A token behind a mask that is told early is told out of order."""
    cases = cases_of(server)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        texts = await asyncio.gather(
            *[streamed_text(http, body_of(case)) for case in cases]
        )
        whole = [await answer(http, body_of(case)) for case in cases]
    assert texts == [response["choices"][0]["text"] for response in whole]


@uses_server("sdar16")
async def test_a_stop_string_in_a_later_block_ends_the_answer(server: Server) -> None:
    """Text behind it is decoded in the same step, and must not be told."""
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        for case in cases_of(server):
            text = (await answer(http, body_of(case)))["choices"][0]["text"]
            words = text.split()
            stop = words[len(words) // 2]
            cut = await answer(http, body_of(case, stop=[stop]))
            assert cut["choices"][0]["text"] == text[: text.index(stop)]
            assert cut["choices"][0]["stop_reason"] == stop
            assert (
                await streamed_text(http, body_of(case, stop=[stop]))
                == text[: text.index(stop)]
            )


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"buffer_size": 0}, ["dllm_buffer_size=0", "1 to 16"]),
    ({"buffer_size": 17}, ["dllm_buffer_size=17"]),
    ({"add_block_threshold": 0.5}, ["dllm_add_block_threshold=0.5", "one block"]),
    ({"buffer_size": 2, "algorithm": "margin"}, ["dllm_buffer_size=2", "'margin'"]),
    ({"decoding_strategy": "d2f"}, ["dllm_algorithm='d2f'", "full attention"]),
    ({"remask_threshold": 0.4}, ["remask_threshold=0.4"]),
]


@uses_server("sdar16")
@pytest.mark.parametrize("streams", [False, True])
async def test_what_cannot_be_is_refused_before_it_begins(
    server: Server, streams: bool
) -> None:
    """A field that is ignored, or refused without its name, cannot be put right."""
    good = {"model": Server.MODEL, "prompt": [9, 10], "max_tokens": 40}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        for body, words in BAD:
            asked = {**good, **body, "stream": streams}
            response = await http.post("/v1/completions", json=asked)
            for word in words:
                assert word in response.text, response.text
        good |= {"decoding_strategy": "multi_bd", "return_token_ids": True}
        assert len((await answer(http, good))["choices"][0]["token_ids"]) == 40
