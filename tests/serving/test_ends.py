"""Servers that end in the middle of answers: nobody waits, and nothing stays."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.servers import Server
from tests.specs import SERVERS

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]

READERS = 8
SECONDS = 10.0
"""Within which every reader hears of the end."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, which it may kill."""
    server = Server(SERVERS["sdar16"], tmp_path / "server.log")
    yield server
    server.close()


def processes(server: Server) -> list[psutil.Process]:
    """The server's, itself first."""
    main = psutil.Process(server.process.pid)
    return [main, *main.children(recursive=True)]


def named(server: Server, part: str) -> psutil.Process:
    return next(p for p in processes(server) if any(part in w for w in p.cmdline()))


async def read(client: httpx.AsyncClient, server: Server, begun: asyncio.Event) -> str:
    """The last line of a long stream, or the name of the error that ended it."""
    body = {
        "model": Server.MODEL,
        "prompt": [5, 6, 7],
        "max_tokens": 1000,
        "ignore_eos": True,
        "stream": True,
        "vllm_xargs": {"dllm_algorithm": "sequential"},
    }
    last = ""
    try:
        url = f"{server.url}/v1/completions"
        async with client.stream("POST", url, json=body) as answer:
            async for line in answer.aiter_lines():
                last = line or last
                begun.set()
    except httpx.HTTPError as error:
        return type(error).__name__
    return last


async def ended_by(server: Server, end: Callable[[], None]) -> list[str]:
    """What the readers of as many streams saw last, when `end` came in their middle."""
    async with httpx.AsyncClient(timeout=60) as client:
        begun = [asyncio.Event() for _ in range(READERS)]
        readers = [asyncio.create_task(read(client, server, e)) for e in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        end()
        done, waiting = await asyncio.wait(readers, timeout=SECONDS)
        for reader in waiting:
            reader.cancel()
    assert not waiting, f"{len(waiting)} of {READERS} readers still wait"
    return [reader.result() for reader in done]


def left_after(all_of_it: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Processes that are still there."""
    return psutil.wait_procs(all_of_it, timeout=seconds)[1]


async def test_a_server_that_is_told_to_stop_ends_its_streams(server: Server) -> None:
    """Clients would wait for their own time-outs, and the server for its clients."""
    all_of_it = processes(server)
    lasts = await ended_by(server, lambda: server.process.send_signal(signal.SIGTERM))
    assert set(lasts) == {"data: [DONE]"}
    assert server.process.wait(SECONDS) == 0
    assert left_after(all_of_it, SECONDS) == []


async def test_the_end_of_a_worker_is_the_end_of_all(server: Server) -> None:
    """Clients would wait for tokens that nobody computes."""
    all_of_it = processes(server)
    worker = named(server, "VLLM::Worker")
    assert await ended_by(server, worker.kill)
    assert left_after(all_of_it, 3 * SECONDS) == []
    assert "EngineDeadError" in server.log.read_text()


async def test_what_a_killed_server_started_ends_with_it(server: Server) -> None:
    """Engine and worker would keep their memory until somebody looks for them."""
    all_of_it = processes(server)
    assert len(all_of_it) > 2
    assert await ended_by(server, server.process.kill)
    started = time.monotonic()
    assert left_after(all_of_it[1:], SECONDS) == []
    assert time.monotonic() - started < SECONDS
    assert not [p for p in all_of_it if os.path.exists(f"/proc/{p.pid}/fd")]
