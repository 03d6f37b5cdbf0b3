"""Soft tokens over HTTP."""

from typing import Any

import httpx
import pytest

from tests.completions import answer, at_the_top, greedy_body, streamed_text
from tests.dmax_cases import random_soft_cases
from tests.engines import uses_server
from tests.golden_cases import golden_cases
from tests.multi_block_cases import multi_block_cases
from tests.servers import Server
from tests.test_serving_golden import by_clients

pytestmark = pytest.mark.timeout(400)


def body_of(case: Any) -> dict[str, Any]:
    fields = at_the_top(case.fields, {}) | getattr(case, "sampling", {})
    return greedy_body(case, **fields, ignore_eos=case.ignore_eos)


@uses_server("sdar16")
async def test_16_clients_with_soft_and_whole_tokens(server: Server) -> None:
    """Requests of every kind come and go in one batch, and a row of one could be shown
    as soft as another's."""
    where = (server.spec.checkpoint, server.spec.block or 0)
    soft = random_soft_cases(*where, 12)
    others: list[Any] = [*multi_block_cases(*where)[:12], *golden_cases(*where)[:12]]
    cases = [case for pair in zip(soft * 2, others, strict=False) for case in pair]
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        got = await by_clients([answer(http, body_of(case)) for case in cases])
        for case, response in zip(cases, got, strict=True):
            assert response["choices"][0]["token_ids"] == case.tokens, str(case)
        for case, response in zip(cases[::2], got[::2], strict=True):
            assert response["usage"]["nfe"] == case.nfe
            text = await streamed_text(http, body_of(case))
            assert text == response["choices"][0]["text"]
