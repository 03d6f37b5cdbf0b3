"""Where the figures of a benchmark go."""

import json
from pathlib import Path
from typing import Any


def write(results: Any, out: Path | None) -> None:
    """As JSON to `out`, if it is asked for."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1))
