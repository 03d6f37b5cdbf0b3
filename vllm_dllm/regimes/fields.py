"""Fields of a request that only some regimes know."""

from collections.abc import Iterable
from typing import Any

from vllm_dllm.params import PREFIX
from vllm_dllm.quoting import quoted


def refuse_fields(own: dict[str, Any], names: Iterable[str], why: str) -> None:
    """Raise ValueError for the first of `names` that a request itself names."""
    for name in names:
        if name in own:
            raise ValueError(f"{PREFIX}{name}={quoted(own[name])} {why}")
