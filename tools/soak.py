"""A mixed load for a while: is every answer right, and what do the servers keep?

    python tools/soak.py --minutes 60 --out docs/benchmarks/soak.json

Starts small servers with too few pages, and asks each of them for everything that it
does not refuse: every decoding rule, structured output, tools, adapters, gaps,
decisions, drafts. Some clients leave in the middle, some read slowly, some send what
must be refused, and now and then everything that runs is preempted. The same request
must be answered the same each time. Afterwards a server must hold no request, no page
and no more sockets than before, and must not have grown since the first quarter. Exits
non-zero otherwise.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.mix.probe import served_by
from tools.mix.readers import Readers
from tools.mix.servers import KINDS, Server
from tools.mix.states import GROWTH, State, complaints

SETTLE_SECONDS = 60
"""For a server to let go of what it holds."""
PREEMPT_SECONDS = 3.0
RESET = "/reset_prefix_cache?reset_running_requests=true"
MOMENTS = 12
"""States of a server during the run that are kept."""


class Soak:
    """The load on one server."""

    def __init__(self, name: str, url: str, pid: int, args: argparse.Namespace) -> None:
        self.name, self.url, self.pid, self.args = name, url, pid, args
        self.served = served_by(url, KINDS[name])
        self.readers = Readers(url, self.served, args.pool, args.patience)
        self.states: list[State] = []

    async def state(self) -> None:
        self.states.append(await asyncio.to_thread(State.of, self.url, self.pid))

    async def preempt(self, until: float) -> None:
        """Take the pages of all that runs, again and again."""
        async with httpx.AsyncClient(base_url=self.url, timeout=600) as http:
            while time.monotonic() < until:
                await asyncio.sleep(PREEMPT_SECONDS)
                try:
                    (await http.post(RESET)).raise_for_status()
                except httpx.HTTPError as error:
                    self.readers.ledger.complain(f"{RESET}: {error!r}")

    async def run(self) -> dict[str, Any]:
        seconds = self.args.minutes * 60
        await self.state()
        until = time.monotonic() + seconds
        tasks = [asyncio.create_task(self.preempt(until))]
        tasks += [
            asyncio.create_task(self.readers.one(number, until))
            for number in range(self.args.streams)
        ]
        for _ in range(MOMENTS):
            await asyncio.sleep(seconds / MOMENTS)
            await self.state()
        await asyncio.gather(*tasks)
        await self.settle()
        return self.result()

    async def settle(self) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        await self.state()
        while time.monotonic() < deadline and self.kept():
            await asyncio.sleep(1)
            self.states.pop()
            await self.state()

    def kept(self) -> list[str]:
        """What the server has that it should not have any more."""
        quarter, last = self.states[MOMENTS // 4], self.states[-1]
        return complaints(self.states[0], quarter, last, self.args.growth)

    def result(self) -> dict[str, Any]:
        ledger = self.readers.ledger
        found = self.kept()
        preempted = self.states[-1].preemptions - self.states[0].preemptions
        if not preempted:
            found.append("nothing was preempted")
        unanswered = {*self.served.rules} - {*ledger.rules}
        unanswered |= {*self.served.kinds} - {*ledger.kinds}
        if unanswered:
            found.append(f"never answered: {', '.join(sorted(unanswered))}")
        return {
            "models": self.served.models,
            "counts": ledger.counts,
            "kinds": ledger.kinds,
            "rules": ledger.rules,
            "different requests": len(ledger.first),
            "preemptions": preempted,
            "states": [asdict(state) for state in self.states],
            "complaints": found + ledger.complaints,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", nargs="+", choices=KINDS, default=list(KINDS)[:3])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--streams", type=int, default=24, help="clients of a server")
    parser.add_argument("--pool", type=int, default=400, help="different requests")
    parser.add_argument(
        "--patience",
        type=float,
        default=60,
        help="seconds without a byte after which an answer counts as lost",
    )
    parser.add_argument(
        "--growth",
        type=float,
        default=GROWTH,
        help="share of its memory that a server may grow by after the first quarter",
    )
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for name in args.servers:
            servers[name] = Server(name, folder)
            undo.callback(servers[name].close)
        for server in servers.values():
            server.wait_until_healthy()
        soaks = [
            Soak(name, server.url, server.process.pid, args)
            for name, server in servers.items()
        ]
        print(f"{len(soaks)} servers are asked from now on", flush=True)
        results = asyncio.run(soak_all(soaks))
    minutes = {"minutes": args.minutes, "streams": args.streams, "pool": args.pool}
    text = json.dumps({**minutes, "servers": results}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    sys.exit(any(result["complaints"] for result in results.values()))


async def soak_all(soaks: list[Soak]) -> dict[str, Any]:
    results = await asyncio.gather(*(soak.run() for soak in soaks))
    return {soak.name: result for soak, result in zip(soaks, results, strict=True)}


if __name__ == "__main__":
    main()
