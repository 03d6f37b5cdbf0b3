"""How many steps a request still takes after its reader has gone.

    python benchmarks/disconnect.py --out docs/benchmarks/disconnect.json

A random SDAR of 100 million parameters, block 32, one token per forward. A stream of
drafts is read for a while and cut; every draft names its step, and the server counts
all of them. What it counts beyond the last one read were on their way when the socket
was closed, or came later.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["VLLM_PLUGINS"] = "dllm"

import checkpoints
from results import write
from server import Server, serve

BLOCK = 32
TOKENS = 512
QUIET_SECONDS = 1.0


def steps_of_a_cut_stream(server: Server, read: int) -> int:
    """Read `read` steps and close the socket; the steps that were taken."""
    address = server.url.removeprefix("http://")
    before = server.denoising_forwards()
    body: dict[str, Any] = {
        "prompt": [7] * 128,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "algorithm": "sequential",
        "stream": True,
        "stream_mode": "denoise",
    }
    connection = http.client.HTTPConnection(address)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/generate", json.dumps(body), headers)
    for line in connection.getresponse():
        event = json.loads(line.removeprefix(b"data: ")) if line.strip() else {}
        if event.get("nfe") == read:
            break
    connection.sock.close()
    connection.close()
    taken, last = -1.0, -2.0
    while taken != last:
        time.sleep(QUIET_SECONDS)
        taken, last = server.denoising_forwards() - before, taken
    return int(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = checkpoints.make(work / "sdar", BLOCK)
        with serve(checkpoint, log=work / "log") as server:
            excess = []
            for _ in range(args.repeats):
                read = rng.randint(20, 100)
                excess.append(steps_of_a_cut_stream(server, read) - read)
    print(f"steps beyond the last one read: {sorted(excess)}")
    result = {"excess": excess, "median": statistics.median(excess)}
    write({**result, "max": max(excess), "of": TOKENS}, args.out)


if __name__ == "__main__":
    main()
