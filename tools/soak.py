"""Many streams for a while, a third of them cut: what does the server keep?

    python tools/soak.py --base-url http://127.0.0.1:8000 --minutes 5 --streams 64

Half of the streams are /v1/generate with drafts, half are plain chat. Some readers are
slow. Afterwards the server must hold no request, no page and no more sockets than
before, and must not have grown: `--pid` names its main process, whose children count
too. Exits non-zero otherwise.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path

import httpx
import psutil

QUESTIONS = (
    "Solve: 12 + 30.",
    "Sort: 33 12 77 45.",
    "Copy: abc def.",
    "Reverse: 1 2 3.",
)
CUT_SHARE, SLOW_SHARE = 1 / 3, 0.1
SETTLE_SECONDS = 10
ALLOWED_GROWTH = 0.10
"""Of resident memory between the first quarter of the run and its end."""


class Soak:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.counts = {"answered": 0, "cut": 0, "failed": 0}
        self.errors: list[str] = []

    def body(self, rng: random.Random) -> tuple[str, dict[str, object]]:
        question = rng.choice(QUESTIONS)
        common = {"stream": True, "max_tokens": 64, "steps": rng.choice((4, 16, 32))}
        if rng.random() < 0.5:
            messages = [{"role": "user", "content": question}]
            fields = {"model": self.args.model, "messages": messages}
            return "/v1/chat/completions", {**common, **fields}
        prompt = f"<role>HUMAN</role>{question}<|role_end|><role>ASSISTANT</role>"
        fields = {"prompt": prompt, "stream_mode": "denoise"}
        return "/v1/generate", {**common, **fields}

    async def one(self, client: httpx.AsyncClient, rng: random.Random) -> None:
        path, body = self.body(rng)
        cut = rng.randint(1, 6) if rng.random() < CUT_SHARE else None
        slow = rng.random() < SLOW_SHARE
        try:
            async with client.stream("POST", path, json=body) as answer:
                answer.raise_for_status()
                seen = 0
                async for line in answer.aiter_lines():
                    seen += line.startswith("data:")
                    if cut is not None and seen >= cut:
                        self.counts["cut"] += 1
                        return
                    if slow:
                        await asyncio.sleep(0.2)
                    if line == "data: [DONE]":
                        self.counts["answered"] += 1
                        return
        except httpx.HTTPError as error:
            self.counts["failed"] += 1
            self.errors.append(f"{path}: {error!r}")

    async def client(self, number: int, until: float) -> None:
        rng = random.Random(number)
        async with httpx.AsyncClient(base_url=self.args.base_url, timeout=120) as http:
            while time.monotonic() < until:
                await self.one(http, rng)

    async def run(self) -> dict[str, dict[str, float]]:
        """The server's state before, after a quarter of the run, and after it."""
        seconds = self.args.minutes * 60
        states = {"before": self.state()}
        until = time.monotonic() + seconds
        tasks = [
            asyncio.create_task(self.client(number, until))
            for number in range(self.args.streams)
        ]
        await asyncio.sleep(seconds / 4)
        states["quarter"] = self.state()
        await asyncio.gather(*tasks)
        await asyncio.sleep(SETTLE_SECONDS)
        states["after"] = self.state()
        return states

    def state(self) -> dict[str, float]:
        text = httpx.get(f"{self.args.base_url}/metrics", timeout=60).text
        state = {
            name: sum(
                float(line.rsplit(" ", 1)[1])
                for line in text.splitlines()
                if line.startswith(f"vllm:{name}{{")
            )
            for name in (
                "num_requests_running",
                "num_requests_waiting",
                "kv_cache_usage_perc",
            )
        }
        if self.args.pid:
            parent = psutil.Process(self.args.pid)
            family = [parent, *parent.children(recursive=True)]
            state["mebibytes"] = sum(p.memory_info().rss for p in family) / 2**20
            state["sockets"] = sum(
                c.status == psutil.CONN_ESTABLISHED
                for p in family
                for c in p.net_connections(kind="tcp")
            )
        return state


def complaints(states: dict[str, dict[str, float]]) -> list[str]:
    """What the server kept that it should not have."""
    before, quarter, after = states["before"], states["quarter"], states["after"]
    found = [
        f"{name} is {after[name]} after the run"
        for name in ("num_requests_running", "num_requests_waiting")
        if after[name]
    ]
    if after["kv_cache_usage_perc"] > before["kv_cache_usage_perc"]:
        found.append(f"pages are in use: {after['kv_cache_usage_perc']:.4f}")
    if "mebibytes" in after:
        if after["mebibytes"] > quarter["mebibytes"] * (1 + ALLOWED_GROWTH):
            found.append(
                f"memory grew from {quarter['mebibytes']:.0f} to "
                f"{after['mebibytes']:.0f} MiB"
            )
        if after["sockets"] > before["sockets"] + 1:
            found.append(f"{after['sockets']:.0f} sockets are open")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="tiny-llada2")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--pid", type=int, help="the server's main process")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    soak = Soak(args)
    states = asyncio.run(soak.run())
    found = complaints(states) + soak.errors[:5]
    result = {"counts": soak.counts, "states": states, "complaints": found}
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
