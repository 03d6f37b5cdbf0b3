"""The Triton kernels on a machine without a GPU, in Triton's interpreter.

It is chosen when Triton is imported, so the tests of test_candidate.py run again in a
process of their own.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("test_candidate.py")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_answer_as_the_reference() -> None:
    """A kernel that only a GPU can run is first run by a user."""
    # -1: not even on a machine with a GPU.
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", str(TESTS)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed and int(passed[1]) >= 60, ran.stdout
    assert "skipped" not in ran.stdout, ran.stdout


def test_the_kernels_are_not_imported_with_the_package() -> None:
    """Where Triton is missing, nothing of the package could be imported."""
    code = "import sys; sys.modules['triton'] = None; import vllm_dllm.ops.candidate"
    subprocess.run([sys.executable, "-c", code], check=True)
