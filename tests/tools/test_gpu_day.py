"""The script for a GPU, as far as it goes without one."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PARTS = ["fit", "check", "serve", "bench", "llada", "fp8", "kernels"]


def run(out: Path, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["tools/gpu_day.sh", *parts],
        cwd=ROOT,
        env=os.environ | {"OUT": str(out), "PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
    )


def table(out: Path) -> list[str]:
    """The parts that were run, and how each ended."""
    lines = (out / "table.txt").read_text().splitlines()
    return [" ".join(line.split()[:2]) for line in lines]


def test_every_part_is_run_in_order(tmp_path: Path) -> None:
    """An hour on a device would be spent on the wrong end."""
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "part1.tar.xz", "w:xz"):
        pass
    day = run(tmp_path / "out", DRY="1", PARTS=str(packed), SITE=str(tmp_path / "site"))
    assert day.returncode == 0, day.stderr
    assert table(tmp_path / "out") == [f"{part} ok" for part in PARTS]
    wanted = [
        "gpu_fit.py torch",
        "tar -xf",
        "gpu_fit.py build",
        "wheels/*.whl",
        "gpu_fit.py vllm",
        "tools/gpu_check.py",
        "tools/soak.py",
        "benchmarks/gpu.py",
        "--config llada",
        "--quantization fp8",
        "tests/ops/test_candidate.py",
    ]
    places = [day.stdout.index(words) for words in wanted]
    assert places == sorted(places)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_that_does_not_fit_is_said_and_left(tmp_path: Path) -> None:
    """Each part would fail by itself, minutes later, without a reason."""
    day = run(tmp_path)
    assert day.returncode == 1
    assert "does not fit: torch" in day.stdout
    assert table(tmp_path) == ["fit failed"]
    assert "does not fit: torch" in (tmp_path / "fit.log").read_text()


def test_a_part_that_is_late_is_cut_off(tmp_path: Path) -> None:
    """The parts behind it would have no time left."""
    day = run(tmp_path, "kernels", "check", LIMIT="0.2")
    assert day.returncode == 1
    assert table(tmp_path) == ["kernels cut", "check cut"]


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    """It would be run as the name of some program."""
    day = run(tmp_path, "ls")
    assert day.returncode == 2
    assert "ls is no part; known: fit check serve bench llada fp8 kernels" in day.stderr
