"""A `vllm serve` process to measure, and what to ask of it."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]


@dataclass
class Run:
    """What a batch of requests took."""

    tokens: int
    seconds: float
    forwards: float
    """Denoising forwards, counted per request; 0 for other models."""
    model_seconds: float
    """Worker time inside the model: forward and logits."""
    worker_seconds: float
    """Worker time of the steps: inputs, model, sampling."""
    steps: int
    """Forwards of the whole batch."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def random_prompts(
    seed: int, count: int, length: int, vocab: int = 30000
) -> list[list[int]]:
    """Token ids for `count` requests, the same for every server and loop."""
    rng = random.Random(seed)
    return [[rng.randrange(5, vocab) for _ in range(length)] for _ in range(count)]


class Server:
    def __init__(self, url: str) -> None:
        self.url = url
        self.model = self._get("/v1/models")["data"][0]["id"]

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path) as response:
            return json.load(response)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            text = response.read()
        return json.loads(text) if text else None

    def rpc(self, method: str) -> Any:
        return self.post("/collective_rpc", {"method": method})

    def denoising_forwards(self) -> float:
        with urllib.request.urlopen(self.url + "/metrics") as response:
            text = response.read().decode()
        pattern = r"^vllm:diffusion_num_denoising_steps_total\{.*\} (\S+)$"
        return sum(float(v) for v in re.findall(pattern, text, re.MULTILINE))

    def run(
        self,
        concurrency: int,
        prompt: int,
        tokens: int,
        seed: int,
        requests: int | None = None,
        **extra: Any,
    ) -> Run:
        """Requests of random prompts to their last token, `concurrency` at once, and
        no more than these unless `requests` says how many."""
        bodies = [
            {
                "model": self.model,
                "prompt": ids,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                **extra,
            }
            for ids in random_prompts(seed, requests or concurrency, prompt)
        ]
        before = self.denoising_forwards()
        self.rpc("reset_timer")
        start = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            answers = list(pool.map(lambda b: self.post("/v1/completions", b), bodies))
        seconds = time.perf_counter() - start
        timer = json.loads(self.rpc("read_timer")["results"][0])
        done = sum(answer["usage"]["completion_tokens"] for answer in answers)
        assert done == len(bodies) * tokens, answers
        return Run(
            done,
            seconds,
            self.denoising_forwards() - before,
            timer["model"],
            timer["worker"],
            timer["forwards"],
        )


@contextlib.contextmanager
def serve(model: Path, *flags: str, log: Path) -> Iterator[Server]:
    """`vllm serve MODEL` with one compute thread, timed inside its worker."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [
        Path(sys.executable).with_name("vllm"),
        *("serve", model, "--port", str(port), "--host", "127.0.0.1"),
        *("--max-model-len", "1024", "--max-num-seqs", "16"),
        *("--no-enable-prefix-caching", "--worker-extension-cls", "timer.ForwardTimer"),
        *flags,
    ]
    path = filter(None, [os.environ.get("PYTHONPATH")])
    env = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *path]),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # A terminated benchmark would leave the server behind: it has its own session.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url + "/health").close()
                break
            time.sleep(0.5)
        else:
            raise RuntimeError(f"the server ended: {log.read_text()[-4000:]}")
        yield Server(url)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # vLLM may hang when it ends while it starts
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
