"""Servers that end in the middle of answers: nobody waits, and nothing stays."""

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.engines import OneAtATime
from tests.processes import family_of, left_after
from tests.servers import Server
from tests.specs import SERVERS

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]

READERS = 64
SECONDS = 10.0
"""Within which every reader hears of the end."""
ANSWER = {
    "model": Server.MODEL,
    "prompt": [5, 6, 7],
    "max_tokens": 1000,
    "ignore_eos": True,
    "vllm_xargs": {"dllm_algorithm": "sequential"},
}


@pytest.fixture
def own_server(running: OneAtATime, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, which it may kill."""
    running.close()  # its environment is not a user's
    spec = replace(SERVERS["sdar16"], routes=True, spawned=True)
    server = Server(spec, tmp_path / "server.log")
    yield server
    server.close()


def memory_of(all_of_it: list[psutil.Process]) -> set[Path]:
    """Files of the shared memory by which they reach one another."""
    paths = {Path(m.path) for p in all_of_it for m in p.memory_maps()}
    return {path for path in paths if "shm" in path.parts and path.exists()}


def openmp_of(all_of_it: list[psutil.Process]) -> list[Path]:
    """Files by which Intel's OpenMP says that it is in one of them."""
    names = (f"__KMP_REGISTERED_LIB_{process.pid}_*" for process in all_of_it)
    return [path for name in names for path in Path("/dev/shm").glob(name)]


async def read(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], begun: asyncio.Event
) -> str:
    """The last line of an answer, or the name of the error that ended it."""
    last = ""
    try:
        async with client.stream("POST", url, json=body) as answer:
            async for line in answer.aiter_lines():
                last = line or last
                begun.set()
    except httpx.HTTPError as error:
        return type(error).__name__
    return last


async def ended_by(server: Server, end: Callable[[], object]) -> list[list[str]]:
    """What the readers saw last when `end` came in their middle.

    Of OpenAI's streams, of those with drafts, and of answers in one piece.
    """
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"stream": True}),
        ("/v1/generate", {"stream": True, "stream_mode": "denoise"}),
        ("/v1/completions", {}),
    ]
    # The last get a slot first: not all of them, or no stream would begin.
    chosen = [kinds[2 if index % 8 == 7 else index % 2] for index in range(READERS)]
    async with httpx.AsyncClient(timeout=60) as client:
        begun = [asyncio.Event() for _ in range(READERS)]
        readers = []
        for (path, fields), event in zip(chosen, begun, strict=True):
            reader = read(client, server.url + path, ANSWER | fields, event)
            readers.append(asyncio.create_task(reader))
        while sum(event.is_set() for event in begun) < 4:
            await asyncio.sleep(0.05)
        end()
        _, waiting = await asyncio.wait(readers, timeout=SECONDS)
        for reader in waiting:
            reader.cancel()
    assert not waiting, f"{len(waiting)} of {READERS} readers still wait"
    lasts = [reader.result() for reader in readers]
    return [[x for x, c in zip(lasts, chosen, strict=True) if c is k] for k in kinds]


def is_cut(answer: dict[str, Any]) -> bool:
    """Whether an answer in one piece says that it was ended, or never begun."""
    return "error" in answer or answer["choices"][0]["finish_reason"] == "abort"


def is_complete(answer: dict[str, Any]) -> bool:
    """Whether it was done before the end: the first ones may be, on a fast machine."""
    return bool(answer["usage"]["completion_tokens"] == ANSWER["max_tokens"])


async def test_a_server_that_is_told_to_stop_ends_its_answers(
    own_server: Server,
) -> None:
    """Clients would wait for their own time-outs, and the server for its clients."""
    server = own_server
    all_of_it = family_of(server.process.pid)
    shared = memory_of(all_of_it)
    stop = server.process.send_signal
    streams, drafts, wholes = await ended_by(server, lambda: stop(signal.SIGTERM))
    assert set(streams + drafts) == {"data: [DONE]"}
    for whole in wholes:
        assert is_cut(answer := json.loads(whole)) or is_complete(answer)
    assert server.process.wait(SECONDS) == 0
    assert left_after(all_of_it, SECONDS) == []
    assert shared
    assert not [path for path in shared if path.exists()]
    assert openmp_of(all_of_it) == []


async def test_what_a_killed_server_started_ends_with_it(own_server: Server) -> None:
    """Engine and worker would keep their memory until somebody looks for them."""
    all_of_it = family_of(own_server.process.pid)
    assert len(all_of_it) > 2
    assert await ended_by(own_server, own_server.process.kill)
    assert left_after(all_of_it, 6 * SECONDS) == []
    assert openmp_of(all_of_it) == []
