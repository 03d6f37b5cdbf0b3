"""Clients of all manners: patient, slow, gone in the middle, and wrong."""

import asyncio
import random
import time
from dataclasses import replace

import httpx

from tools.mix.answers import Broken, Stream, of_whole
from tools.mix.bad import BAD, is_refused
from tools.mix.kinds import Asked, Served, drawn
from tools.mix.ledger import Ledger

CUT_SHARE, SLOW_SHARE, BAD_SHARE, STREAM_SHARE = 0.25, 0.1, 0.06, 0.6
SLOW_SECONDS = 0.2
ABORTED_WITHIN = 2.0
"""Seconds after which a client of an answer in one piece is gone."""


class Readers:
    """The clients of one server.

    Each request is asked for once by somebody who stays for its answer, then again and
    again in any order.

    Args:
        pool: how many different requests there are.
        patience: seconds without a byte after which an answer is lost.
    """

    def __init__(self, url: str, served: Served, pool: int, patience: float) -> None:
        self.url = url
        self.served = served
        self.pool = pool
        self.unasked = iter(range(pool))
        self.patience = patience
        self.ledger = Ledger()

    def client(self) -> httpx.AsyncClient:
        timeout = httpx.Timeout(self.patience, pool=None)
        return httpx.AsyncClient(base_url=self.url, timeout=timeout)

    async def one(self, number: int, until: float) -> None:
        """A client that asks until the clock says `until`."""
        rng = random.Random(number)
        async with self.client() as http:
            while time.monotonic() < until:
                await self.ask(http, rng)

    async def ask(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """One request, and what becomes of it."""
        if rng.random() < BAD_SHARE:
            return await self.ask_badly(http, rng)
        number, leaves = next(self.unasked, None), False
        if number is None:
            number, leaves = rng.randrange(self.pool), rng.random() < CUT_SHARE
        asked = drawn(number, self.served)
        if asked.streams and rng.random() < STREAM_SHARE:
            asked = replace(asked, body={**asked.body, "stream": True})
        read = self.read_stream if asked.body.get("stream") else self.read_whole
        try:
            await read(http, asked, rng, leaves)
        except (httpx.HTTPError, Broken, ValueError, KeyError) as error:
            self.ledger.failed(asked, repr(error))

    async def ask_badly(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        path, body, part = rng.choice(BAD)
        asked = Asked("bad", path, {"model": self.served.models[0], **body})
        if "stream_mode" not in body and rng.random() < 0.5:
            asked = replace(asked, body={**asked.body, "stream": True})
        try:
            answer = await http.post(path, json=asked.body)
        except httpx.HTTPError as error:
            return self.ledger.failed(asked, repr(error))
        if is_refused(answer.status_code, answer.text, part):
            self.ledger.counts["refused"] += 1
        else:
            self.ledger.failed(asked, f"{answer.status_code}: {answer.text[:300]}")

    async def read_whole(
        self, http: httpx.AsyncClient, asked: Asked, rng: random.Random, leaves: bool
    ) -> None:
        gone = rng.random() * ABORTED_WITHIN if leaves else None
        try:
            async with asyncio.timeout(gone):
                answer = await http.post(asked.path, json=asked.body)
        except TimeoutError:
            self.ledger.counts["aborted"] += 1
            return
        if answer.status_code != 200:
            raise Broken(f"{answer.status_code}: {answer.text[:600]}")
        self.ledger.answered(asked, of_whole(answer.json()))

    async def read_stream(
        self, http: httpx.AsyncClient, asked: Asked, rng: random.Random, leaves: bool
    ) -> None:
        cut = rng.randint(1, 8) if leaves else None
        slow = rng.random() < SLOW_SHARE
        stream = Stream()
        async with http.stream("POST", asked.path, json=asked.body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                raise Broken(f"{answer.status_code}: {answer.text[:600]}")
            async for line in answer.aiter_lines():
                stream.read(line)
                if stream.ended:
                    break
                if stream.events == cut:
                    return self.ledger.cut(asked, stream.texts)
                if slow and line:
                    await asyncio.sleep(SLOW_SECONDS)
        if not stream.ended:
            raise Broken(f"no end behind {stream.texts}")
        if slow:
            self.ledger.counts["slowly read"] += 1
        self.ledger.answered(asked, stream.texts)
