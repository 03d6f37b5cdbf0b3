"""The servers that are soaked: small, with fewer pages than their requests fill."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from tools.mix.adapter import make_adapter
from tools.tiny import skills

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS, END_SECONDS = 1800, 120
"""A start at the lowest priority takes minutes."""
FLAGS = {
    "dtype": "float32",
    "max-model-len": 512,
    "max-num-batched-tokens": 1024,
    "max-num-seqs": 16,
    "num-gpu-blocks-override": 44,
    "dllm-busy-threshold": 0.6,
    "dllm-busy-requests": 4,
    "tool-call-parser": "hermes",
    "structured-outputs-config": json.dumps(
        {"backend": "xgrammar", "disable_any_whitespace": True}
    ),
}


def question(rng: random.Random) -> str:
    """One of those that the bundled models were trained for."""
    return skills.train_example(rng, dict.fromkeys(skills.TASKS, 1.0), 0.5).question


def numbered(rng: random.Random) -> str:
    """Words of the golden checkpoints, one a token."""
    return " ".join(f"w{rng.randint(2, 252)}" for _ in range(rng.randint(2, 12)))


@dataclass(frozen=True)
class Kind:
    folder: str
    texts: Callable[[random.Random], str] = numbered
    words: tuple[str, ...] = tuple(f"w{number}" for number in range(10, 20))
    """There is no token w1."""
    spells: bool = False
    """Whether its tokens can say anything, such as JSON."""
    adapted: tuple[str, ...] = ()
    """Layers of its adapter; none, no adapter."""


TRAINED = {"texts": question, "words": ("12", "41", "99", "cat", "dog"), "spells": True}
QKV = ("q_proj", "k_proj", "v_proj")
KINDS = {
    "tiny-llada2": Kind("models/tiny-llada2", **TRAINED),
    "tiny-llada": Kind("models/tiny-llada", **TRAINED, adapted=(*QKV, "ff_proj")),
    "sdar": Kind("tests/golden/sdar-pub1", adapted=(*QKV, "up_proj")),
    "dream": Kind("tests/golden/dream-pub0", adapted=QKV),
}


class Server:
    """A `vllm serve` of one kind, with the priority of this process."""

    def __init__(self, name: str, folder: Path) -> None:
        kind, checkpoint = KINDS[name], ROOT / KINDS[name].folder
        self.log = folder / f"{name}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
        command += [checkpoint]
        command += ["--host", "127.0.0.1", "--port", port, "--served-model-name", name]
        command += ["--enforce-eager", "--enable-auto-tool-choice"]
        for flag, value in FLAGS.items():
            command += [f"--{flag}", value]
        if kind.adapted:
            adapter = folder / f"{name}-adapter"
            make_adapter(adapter, checkpoint, kind.adapted)
            command += ["--enable-lora", "--max-lora-rank", 8]
            command += ["--lora-modules", f"{name}-adapter={adapter}"]
        own = {
            "VLLM_PLUGINS": "dllm",
            # For /reset_prefix_cache, which preempts all that run.
            "VLLM_SERVER_DEV_MODE": "1",
            # Seconds: a busy client must not write to what is just being closed.
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
        }
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own},
                # Not a session: Linux weighs sessions against each other, whatever
                # the priority of their processes.
                process_group=0,
            )

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx.get(f"{self.url}/health", timeout=60)
                return
            except httpx.HTTPError:
                time.sleep(1)
        raise RuntimeError(f"the server does not answer:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-40:])

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(END_SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
