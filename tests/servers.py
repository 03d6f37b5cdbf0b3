"""A running `vllm serve`, and what tests ask it besides completions."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from tests.forked import forked_command
from tests.golden_cases import GOLDEN
from tests.specs import PAGES, EngineSpec


def free_port() -> int:
    """One of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A `vllm serve` process on a free port of the loopback interface."""

    MODEL = "golden"
    START_SECONDS = 240

    def __init__(self, spec: EngineSpec, log: Path, waits: bool = True) -> None:
        self.spec = spec
        self.log = log
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [Path(sys.executable).with_name("vllm"), "serve"]
        command += [GOLDEN / spec.checkpoint]
        command += ["--dllm-block-size", spec.block] if spec.block else []
        command += ["--host", "127.0.0.1", "--port", port]
        command += ["--served-model-name", self.MODEL, "--dtype", "float32"]
        command += ["--max-model-len", 1024, "--max-num-seqs", 16, "--enforce-eager"]
        command += ["--num-gpu-blocks-override", PAGES]
        for name, value in spec.options.items():
            value = json.dumps(value) if isinstance(value, dict) else value
            values = value if isinstance(value, list) else [value]
            command += [f"--{name.replace('_', '-')}"]
            command += [] if value is True else values
        environment = {
            "VLLM_CPU_OMP_THREADS_BIND": spec.cores,
            # Seconds: a busy client must not write to what is just being closed.
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        }
        environment |= {"VLLM_PLUGINS": "dllm"} if spec.routes else {}
        start = spawned_command if spec.spawned else forked_command
        self.process = start([str(word) for word in command], environment, log)
        try:
            if waits:
                self.wait_until_healthy()
        except BaseException:
            self.close()
            raise

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self.START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"vllm serve ended:\n{self.log_tail()}")
            try:
                with urlopen(f"{self.url}/health"):
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"vllm serve does not answer:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-60:])

    def metric(self, name: str) -> float:
        """A vLLM gauge or counter, summed over its labels."""
        with urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f"vllm:{name}{{")
        ]
        assert values, f"/metrics has no vllm:{name}"
        return sum(values)

    def held(self) -> dict[str, float]:
        """What it holds for requests, with half a minute to let go of it."""
        gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        deadline = time.monotonic() + 30
        while held := {name: value for name in gauges if (value := self.metric(name))}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return held

    def close(self) -> None:
        """End the server and the processes it started."""
        for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def spawned_command(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """A command in a session of its own, its output to `log`."""
    with log.open("w") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
