"""Two nodes of one engine: vLLM's own launch, on one machine."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.completions import answer, greedy_body
from tests.engines import OneAtATime
from tests.golden_cases import differences, golden_cases
from tests.processes import family_of, left_after
from tests.servers import Server, free_port
from tests.specs import EngineSpec
from tests.test_serving_golden import by_clients

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]
SECONDS = 40.0
"""vLLM gives a worker on another node ten before it kills it."""


@pytest.fixture(
    params=[
        "pipeline_parallel_size",
        pytest.param("tensor_parallel_size", marks=pytest.mark.on_demand),
    ]
)
def nodes(
    request: pytest.FixtureRequest,
    running: OneAtATime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[list[Server]]:
    """The first one answers requests."""
    running.close()
    for name, value in (("VLLM_HOST_IP", "127.0.0.1"), ("GLOO_SOCKET_IFNAME", "lo")):
        monkeypatch.setenv(name, value)
    common: dict[str, Any] = {
        request.param: 2,
        "nnodes": 2,
        "master_addr": "127.0.0.1",
        "master_port": free_port(),
    }
    started: list[Server] = []
    try:
        for own in ({"node_rank": 1, "headless": True}, {"node_rank": 0}):
            spec = EngineSpec("sdar-pub1", 16, common | own)
            started.append(Server(spec, tmp_path / f"node{own['node_rank']}.log"))
        yield started[::-1]
    finally:
        for server in started:
            server.close()


async def test_two_nodes_answer_as_one_and_end(nodes: list[Server]) -> None:
    """The stage that decides is on the other node than the scheduler; a node that
    nobody waits for would keep its memory."""
    cases = golden_cases("sdar-pub1", 16)
    async with httpx.AsyncClient(base_url=nodes[0].url, timeout=120) as http:
        bodies = [greedy_body(case, **case.fields) for case in cases]
        answers = await by_clients([answer(http, body) for body in bodies])
    tokens = [each["choices"][0]["token_ids"] for each in answers]
    assert differences(cases, tokens) == []
    all_of_it = [p for node in nodes for p in family_of(node.process.pid)]
    assert len(all_of_it) > 4
    for node in nodes:
        node.process.send_signal(signal.SIGTERM)
    for node in nodes:
        node.process.wait(SECONDS)
    assert left_after(all_of_it, SECONDS) == []
