"""An engine that stands still fails its test in a minute, and says which requests."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

PATIENCE = 60.0
"""Seconds in which some request must get a token, or end."""
WAKE_UP = signal.SIGUSR2
"""The timeouts of pytest-timeout take SIGALRM."""


@contextmanager
def watched(engine: "LLMEngine", patience: float = PATIENCE) -> Iterator[None]:
    """Fail the test, from within whatever it waits for, if the engine's requests get
    no token for so long."""
    ended = threading.Event()
    main = threading.get_ident()

    def watch() -> None:
        before = progress(engine)
        while not ended.wait(patience):
            now = progress(engine)
            if now == before:
                signal.pthread_kill(main, WAKE_UP)
                return
            before = now

    def fail(number: int, frame: FrameType | None) -> None:
        standing = "\n".join(map(described, progress(engine).items()))
        pytest.fail(f"no request moved in {patience} s; unfinished:\n{standing}")

    previous = signal.signal(WAKE_UP, fail)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(WAKE_UP, previous)


def progress(engine: "LLMEngine") -> dict[str, Any]:
    """The tokens of every unfinished request so far."""
    states = dict(engine.output_processor.request_states)
    return {
        name: (state.prompt_len, state.detokenizer.num_output_tokens())
        for name, state in states.items()
    }


def described(request: tuple[str, tuple[int, int]]) -> str:
    name, (prompt, answer) = request
    return f"{name}: {answer} tokens after a prompt of {prompt}"
