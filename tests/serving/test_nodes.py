"""Two nodes of one engine: vLLM's own launch, on one machine."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.completions import greedy_body
from tests.engines import OneAtATime
from tests.golden_cases import Case, differences, golden_cases
from tests.processes import family_of, left_after
from tests.servers import Server, free_port
from tests.serving.test_data_parallel import handed_out
from tests.specs import EngineSpec
from tests.test_serving_golden import by_clients

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]
Options = dict[str, Any]
"""Flags of a server, over those of both."""
SECONDS = 40.0
"""vLLM gives a worker on another node ten before it kills it."""


@contextmanager
def two_servers(
    running: OneAtATime, folder: Path, common: Options, *own: Options
) -> Iterator[list[Server]]:
    """Started together, as they wait for each other; the first one answers requests."""
    running.close()
    started: list[Server] = []
    try:
        for number, options in enumerate(own):
            spec = EngineSpec("sdar-pub1", 16, common | options, routes=True)
            log = folder / f"node{number}.log"
            started.append(Server(spec, log, waits=False))
        started[0].wait_until_healthy()
        yield started
    finally:
        for server in started:
            server.close()


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other interface of the machine may be there."""
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(
    params=[
        "pipeline_parallel_size",
        pytest.param("tensor_parallel_size", marks=pytest.mark.on_demand),
    ]
)
def nodes(
    request: pytest.FixtureRequest, running: OneAtATime, tmp_path: Path
) -> Iterator[list[Server]]:
    common = {
        request.param: 2,
        "nnodes": 2,
        "master_addr": "127.0.0.1",
        "master_port": free_port(),
    }
    own: list[Options] = [{"node_rank": 0}, {"node_rank": 1, "headless": True}]
    with two_servers(running, tmp_path, common, *own) as servers:
        yield servers


async def golden_differences(servers: list[Server]) -> list[str]:
    """Of answers that they give in turn to 16 clients."""
    cases = golden_cases("sdar-pub1", 16)
    urls = [f"{server.url}/v1/completions" for server in servers]
    async with httpx.AsyncClient(timeout=120) as http:

        async def one(number: int, case: Case) -> list[int]:
            body = greedy_body(case, **case.fields)
            response = await http.post(urls[number % len(urls)], json=body)
            [choice] = response.raise_for_status().json()["choices"]
            return choice["token_ids"]

        work = [one(number, case) for number, case in enumerate(cases)]
        return differences(cases, await by_clients(work))


async def test_two_nodes_answer_as_one_and_end(nodes: list[Server]) -> None:
    """The stage that decides is on the other node than the scheduler; a node that
    nobody waits for would keep its memory."""
    assert await golden_differences(nodes[:1]) == []
    all_of_it = [p for node in nodes for p in family_of(node.process.pid)]
    assert len(all_of_it) > 4
    for node in nodes:
        node.process.send_signal(signal.SIGTERM)
    for node in nodes:
        node.process.wait(SECONDS)
    assert left_after(all_of_it, SECONDS) == []


@pytest.mark.on_demand
async def test_nodes_with_a_balancer_in_front_answer_as_one(
    running: OneAtATime, tmp_path: Path
) -> None:
    """Each node has two engines of four, and balances between these."""
    common = {
        "data_parallel_size": 4,
        "data_parallel_size_local": 2,
        "data_parallel_hybrid_lb": True,
        "data_parallel_address": "127.0.0.1",
        "data_parallel_rpc_port": free_port(),
        "api_server_count": 1,
        "num_gpu_blocks_override": 256,
    }
    second = {"data_parallel_start_rank": 2}
    with two_servers(running, tmp_path, common, {}, second) as servers:
        servers[1].wait_until_healthy()
        assert await golden_differences(servers) == []
        async with httpx.AsyncClient(timeout=120) as http:
            pages = [(await http.get(f"{s.url}/metrics")).text for s in servers]
        busy = [
            sorted(engine for engine, n in handed_out(p).items() if n) for p in pages
        ]
        assert busy == [["0", "1"], ["2", "3"]]
