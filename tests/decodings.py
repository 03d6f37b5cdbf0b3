"""Settled requests for tests of the worker, which never sees a wish."""

from typing import Any

from vllm_dllm.params import DllmParams
from vllm_dllm.settled import Decoding


def decoding(
    rule: str = "threshold", block_length: int = 4, steps: int = 4, **fields: Any
) -> Decoding:
    """A request with these fields; all others have their defaults."""
    wishes = DllmParams(algorithm=rule, **fields)
    return Decoding.of(wishes, rule, block_length, steps)
