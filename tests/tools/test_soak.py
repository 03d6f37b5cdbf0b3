"""Five minutes of tools/soak.py: nothing is lost, and nothing stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import OneAtATime

ROOT = Path(__file__).parents[2]
MINUTES = 5


@pytest.mark.server
@pytest.mark.on_demand
@pytest.mark.timeout(1800)
def test_servers_of_every_attention_stand_a_mixed_load(running: OneAtATime) -> None:
    """A page or a reader that is forgotten once in a thousand requests."""
    running.close()
    command = [sys.executable, "tools/soak.py", "--minutes", str(MINUTES)]
    command += ["--pool", "300", "--patience", "300", "--growth", "0.3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
