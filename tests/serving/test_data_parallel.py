"""Two engines and two API servers behind one port."""

import asyncio
import re
from typing import Any

import httpx
import pytest

from tests.completions import answer, greedy_body
from tests.engines import uses_server
from tests.golden_cases import Case, differences, golden_cases
from tests.servers import Server

pytestmark = pytest.mark.timeout(400)


def cases_of(server: Server) -> list[Case]:
    return golden_cases(server.spec.checkpoint, server.spec.block)


def handed_out(page: str) -> dict[str, float]:
    """An engine -> its tokens, as /metrics has them."""
    pattern = r'^vllm_dllm:committed_tokens_total\{engine="(\d)".*\} (\S+)$'
    rows = re.findall(pattern, page, re.MULTILINE)
    return {engine: float(tokens) for engine, tokens in rows}


@uses_server("sdar16-dp2")
async def test_two_engines_answer_as_one(server: Server) -> None:
    """An engine without work, or a request of the other API server, could hold the rest
    up; metrics of one engine would stand for both, and what is told of a request goes
    another way to the client than its tokens."""
    cases = cases_of(server)
    fields = {"dllm_return_trajectory": True}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        before = handed_out((await http.get("/metrics")).text)
        bodies = [greedy_body(case, **case.fields, **fields) for case in cases]
        answers = await asyncio.gather(*(answer(http, body) for body in bodies))
        tokens = [each["choices"][0]["token_ids"] for each in answers]
        assert differences(cases, tokens) == []
        for got, each in zip(tokens, answers, strict=True):
            steps = each["kv_transfer_params"]["dllm_trajectory"]
            assert len(steps) == len(got)
            assert max(steps) <= each["usage"]["nfe"]
        after = handed_out((await http.get("/metrics")).text)
    grown = {engine: after[engine] - before.get(engine, 0) for engine in after}
    assert set(grown) == {"0", "1"}
    assert all(grown.values())
    assert sum(grown.values()) == sum(map(len, tokens))


@uses_server("sdar16-dp2")
async def test_drafts_of_two_engines(server: Server) -> None:
    """Our routes could be those of the first API server, or follow one engine alone."""

    async def drafts(http: httpx.AsyncClient, case: Case) -> int:
        body: dict[str, Any] = greedy_body(case, **case.fields)
        body |= {"stream": True, "stream_mode": "denoise"}
        got = await http.post("/v1/generate", json=body)
        return got.text.count('"type": "draft"')

    cases = cases_of(server)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        for _ in range(4):
            assert (await http.get("/dllm/")).status_code == 200
        seen = await asyncio.gather(*(drafts(http, case) for case in cases))
    assert [number > 1 for number in seen] == [True] * len(cases)
