"""The mixed load of tools/soak.py: what it complains of, and what is no reason to."""

import asyncio
import random
from dataclasses import replace

import pytest

from tests.engines import uses_server
from tests.servers import Server
from tools.mix import servers
from tools.mix.answers import Broken, Stream, of_whole
from tools.mix.kinds import Asked
from tools.mix.ledger import Ledger
from tools.mix.probe import served_by
from tools.mix.readers import Readers
from tools.mix.states import State, complaints

CLIENTS, REQUESTS = 12, 8
ASKED = Asked("chat", "/v1/chat/completions", {"model": "a"})


def test_another_answer_to_the_same_request_is_a_complaint() -> None:
    """A soak that compares nothing is a load test."""
    ledger = Ledger()
    ledger.answered(ASKED, {0: "one two"})
    ledger.answered(replace(ASKED, body={"model": "a", "stream": True}), {0: "one two"})
    ledger.cut(ASKED, {0: "one"})
    assert ledger.counts["compared"] == 1 and not ledger.complaints
    ledger.answered(ASKED, {0: "one three"})
    ledger.cut(ASKED, {0: "two"})
    ledger.answered(replace(ASKED, body={"model": "b"}), {0: "four"})
    assert len(ledger.complaints) == ledger.counts["other answers"] == 2
    ledger.answered(replace(ASKED, repeats=False), {0: "five"})
    assert len(ledger.complaints) == 2


def test_streams_of_all_routes_are_read_as_their_whole_answers() -> None:
    """A piece that is left out of both is never missed."""
    call = {"function": {"name": "note", "arguments": '{"a": 1}'}}
    whole = {
        "choices": [{"index": 1, "message": {"content": "b", "tool_calls": [call]}}]
    }
    streams = [
        [
            '{"choices": [{"index": 1, "delta": {"content": "b"}}]}',
            '{"choices": [{"index": 1, "delta": {"tool_calls": [{"function": '
            '{"name": "note", "arguments": "{\\"a\\": 1}"}}]}}]}',
        ],
        [
            '{"choices": [{"index": 1, "text": "bno"}]}',
            '{"choices": [{"index": 1, "text": "te{\\"a\\": 1}"}], "usage": null}',
        ],
    ]
    for lines in streams:
        stream = Stream()
        for line in lines:
            stream.read(f"data: {line}")
        assert not stream.ended
        stream.read("data: [DONE]")
        assert stream.ended and stream.texts == of_whole(whole)
    stream = Stream()
    stream.read('data: {"type": "append", "text": "c", "token_ids": [1]}')
    stream.read('data: {"type": "draft", "text": "d"}')
    assert stream.texts == of_whole({"text": "c"})
    with pytest.raises(Broken):
        stream.read('data: {"error": {"code": 500}}')


def test_what_a_server_keeps_is_a_complaint() -> None:
    """Growth, and what is held for nobody, is what an hour is for."""
    before = State(0, 0, 0.0, 0, mebibytes=90, sockets=1, threads=70)
    quarter = replace(before, running=9, pages=0.9, mebibytes=100, sockets=25)
    after = replace(before, mebibytes=109, preemptions=5)
    assert complaints(before, quarter, after) == []
    for kept in (
        {"running": 1},
        {"waiting": 1},
        {"pages": 0.1},
        {"mebibytes": 111},
        {"sockets": 25},
        {"threads": 90},
    ):
        [found] = complaints(before, quarter, replace(after, **kept))
        assert str(next(iter(kept.values()))) in found


@uses_server("tiny-llada2")
async def test_a_mixed_load_is_answered_alike_each_time(server: Server) -> None:
    """What is right alone, or in a batch of its kind, may not be beside all others."""
    served = served_by(server.url, servers.KINDS["tiny-llada2"])
    readers = Readers(server.url, served, pool=2 * len(served.kinds), patience=120)

    async def client(number: int) -> None:
        rng = random.Random(number)
        async with readers.client() as http:
            for _ in range(REQUESTS):
                await readers.ask(http, rng)

    await asyncio.gather(*map(client, range(CLIENTS)))
    assert readers.ledger.complaints == []
    assert readers.ledger.counts["compared"] > 10
    assert not server.held()
