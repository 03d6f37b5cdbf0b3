"""Which engines the check of a GPU starts, and that a failure is one."""

import subprocess
import sys
from pathlib import Path

from tools.gpu_check import MODELS, REPO, Check, checks, run_apart


def test_every_model_runs_on_every_backend_that_takes_its_dtype() -> None:
    """A backend that nobody asked for is one that was never checked."""
    found = checks("cuda", [], [], [])
    assert {check.model for check in found} == set(MODELS)
    assert {check.mode for check in found} == {"eager", "graphs"}
    assert {c.backend for c in found if c.dtype == "float32"} == {"TRITON_ATTN"}
    assert {"FLASH_ATTN", "TRITON_ATTN"} <= {
        c.backend for c in found if c.dtype == "bfloat16"
    }
    assert len(set(found)) == len(found)
    some = checks("cuda", ["llada", "tiny-llada2"], ["TRITON_ATTN"], ["eager"])
    assert some == [
        Check("llada", "float32", "TRITON_ATTN", "eager"),
        Check("tiny-llada2", "bfloat16", "TRITON_ATTN", "eager"),
    ]


def test_an_engine_that_does_not_start_is_a_failure(tmp_path: Path) -> None:
    """No answer would pass for no difference."""
    check = Check("sdar4", "float32", "NO_SUCH_BACKEND", "eager")
    outcome = run_apart(check, tmp_path)
    assert not outcome.passed
    assert any("NO_SUCH_BACKEND" in line for line in outcome.problems)


def test_nothing_to_check_is_a_mistake() -> None:
    """A misspelt backend would end with success."""
    command = [sys.executable, "tools/gpu_check.py", "--backends", "FLASH"]
    ran = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "no such check" in ran.stderr
