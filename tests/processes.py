"""Processes that a server or an engine started, and which of them are left."""

import time
from collections.abc import Sequence

import psutil


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all that it started and that still run, itself first."""
    first = psutil.Process(pid)
    return [first, *filter(is_there, first.children(recursive=True))]


def left_after(
    all_of_it: Sequence[psutil.Process], seconds: float
) -> list[psutil.Process]:
    """Processes that are still there, but for those nobody has asked how they ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = [p for p in all_of_it if is_there(p)]
        if not left:
            break
        time.sleep(0.2)
    return left


def is_there(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
