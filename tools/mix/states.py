"""What a server holds: requests, pages, memory, sockets and threads."""

from dataclasses import asdict, dataclass

import httpx
import psutil

GROWTH = 0.10
"""Of resident memory that is allowed between the first quarter of an hour's run and its
end. In minutes a fresh server grows more: it uses its pages for the first time."""
FEW = 2
"""Sockets or threads more than before that are nothing yet: a scrape of /metrics."""


@dataclass(frozen=True)
class State:
    running: float
    waiting: float
    pages: float
    preemptions: float
    mebibytes: float
    sockets: int
    threads: int

    @classmethod
    def of(cls, url: str, pid: int) -> "State":
        """That of a server and of all processes that it started."""
        lines = httpx.get(f"{url}/metrics", timeout=600).text.splitlines()

        def metric(name: str) -> float:
            prefix = f"vllm:{name}{{"
            found = [line for line in lines if line.startswith(prefix)]
            return sum(float(line.rsplit(" ", 1)[1]) for line in found)

        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
        connections = [c for p in family for c in p.net_connections(kind="tcp")]
        return cls(
            metric("num_requests_running"),
            metric("num_requests_waiting"),
            metric("kv_cache_usage_perc"),
            metric("num_preemptions_total"),
            sum(p.memory_info().rss for p in family) / 2**20,
            sum(c.status == psutil.CONN_ESTABLISHED for c in connections),
            sum(p.num_threads() for p in family),
        )


def complaints(
    before: State, quarter: State, after: State, growth: float = GROWTH
) -> list[str]:
    """What a server kept that it should not have."""
    found = [
        f"{name} is {value} after the run"
        for name in ("running", "waiting", "pages")
        if (value := asdict(after)[name])
    ]
    if after.mebibytes > quarter.mebibytes * (1 + growth):
        found.append(
            f"memory grew from {quarter.mebibytes:.0f} to {after.mebibytes:.0f} MiB"
        )
    if after.sockets > before.sockets + FEW:
        found.append(f"{after.sockets} sockets are open, {before.sockets} before")
    # Servers make the threads that they keep when they are first needed.
    if after.threads > quarter.threads + FEW:
        found.append(f"{after.threads} threads, {quarter.threads} after a quarter")
    return found
