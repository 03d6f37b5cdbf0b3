"""Forks that stand for spawned processes."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from tests.forked import Forked, ForkedContext


def describe(answers: Path) -> None:
    """Write down what this process found, and how its own children start."""
    child = multiprocessing.get_context("spawn").get_start_method()
    imported = "vllm.v1.worker.cpu_worker" in sys.modules
    given = {name: os.environ.get(name) for name in ("DLLM_GIVEN", "DLLM_TAKEN")}
    answers.write_text(json.dumps([imported, child, given]))
    sys.exit(3)


def test_a_fork_is_a_spawned_process_without_its_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its imports each start is slow again, and nothing says why; with the
    environment of an earlier start it is another server's."""
    answers = tmp_path / "answers.json"
    monkeypatch.setenv("DLLM_TAKEN", "1")
    first = Forked(target=os._exit, args=(0,))
    first.start()
    assert first.wait() == 0
    monkeypatch.delenv("DLLM_TAKEN")
    monkeypatch.setenv("DLLM_GIVEN", "2")
    second = ForkedContext().Process(target=describe, args=(answers,))
    second.start()
    assert second.wait() == 3
    given = {"DLLM_GIVEN": "2", "DLLM_TAKEN": None}
    assert json.loads(answers.read_text()) == [True, "fork", given]
