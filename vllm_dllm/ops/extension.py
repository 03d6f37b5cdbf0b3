"""The native extension, if there is one: csrc/ compiled without torch."""

import importlib
import logging
import os
from functools import cache
from types import ModuleType

import torch

logger = logging.getLogger(__name__)
VERSION = 4
"""That of csrc/module.cpp."""


@cache
def load() -> ModuleType | None:
    """`vllm_dllm._C`, or None where it was not built, was built from sources of another
    version, or VLLM_DLLM_NATIVE=0."""
    if os.environ.get("VLLM_DLLM_NATIVE") == "0":
        return None
    try:
        module = importlib.import_module("vllm_dllm._C")
        if getattr(module, "version", None) != VERSION:
            raise ImportError("they are of another version: install them again")
    except ImportError as error:
        logger.warning("Native CPU kernels unavailable (%s); using torch.", error)
        return None
    return module


def load_for(tensor: torch.Tensor) -> ModuleType | None:
    """The same for a tensor's device, which it may not be for."""
    return load() if tensor.is_cpu else None


def addresses(*tensors: torch.Tensor) -> list[int]:
    """What C++ is given of contiguous tensors; their types are the caller's promise."""
    assert all(map(torch.Tensor.is_contiguous, tensors))
    return [*map(torch.Tensor.data_ptr, tensors)]
