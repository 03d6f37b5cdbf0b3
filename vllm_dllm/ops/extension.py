"""The native extension, if there is one: csrc/ compiled without torch."""

import importlib
import os
from functools import cache
from types import ModuleType


@cache
def load() -> ModuleType | None:
    """`vllm_dllm._C`, or None where it was not built or VLLM_DLLM_NATIVE=0."""
    if os.environ.get("VLLM_DLLM_NATIVE") == "0":
        return None
    try:
        return importlib.import_module("vllm_dllm._C")
    except ImportError:
        return None
