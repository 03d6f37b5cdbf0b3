"""Processes of vLLM that are forked from one that has imported it.

vLLM for CPU spawns every process, and each imports vLLM and torch again: seven seconds
of a core, three times for a server. A fork of a process that has them, and that never
ran a thread, is there at once. Its own children are forks of it, as vLLM's are on GPUs.
What a spawned process needs besides, to be pickled and to import what it uses, is shown
by the engines and servers of tests/specs.py that are `spawned`, and by tests of
examples, docs and other models.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import context, forkserver
from pathlib import Path
from subprocess import TimeoutExpired

import pytest


class Forked(context.ForkServerProcess):
    """A fork with the environment that its parent has when it starts it.

    It can be asked what a `subprocess.Popen` is asked.
    """

    environment: dict[str, str]

    def start(self) -> None:
        self.environment = dict(os.environ)
        forkserver.set_forkserver_preload(["tests.imported"])
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        context._concrete_contexts["spawn"] = multiprocessing.get_context("fork")
        super().run()

    def poll(self) -> int | None:
        return self.exitcode

    def send_signal(self, number: int) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def wait(self, seconds: float | None = None) -> int:
        self.join(seconds)
        if self.exitcode is None:
            raise TimeoutExpired(self.name, seconds or 0)
        return self.exitcode


class ForkedContext(context.ForkServerContext):
    Process = Forked


@contextmanager
def forked_engines() -> Iterator[None]:
    """Processes that vLLM would spawn are forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(context._concrete_contexts, "spawn", ForkedContext())
        yield


def forked_command(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> Forked:
    """A Python script and its arguments, in a session of its own, output to `log`."""
    process = Forked(target=run_command, args=(command, environment, log))
    process.start()
    return process


def send_output_to(log: Path) -> None:
    """What this process prints from now on, and its children."""
    with log.open("w") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)


def run_command(command: Sequence[str], environment: dict[str, str], log: Path) -> None:
    os.setsid()
    send_output_to(log)
    os.environ.update(environment)
    sys.argv[:] = command
    runpy.run_path(command[0], run_name="__main__")
