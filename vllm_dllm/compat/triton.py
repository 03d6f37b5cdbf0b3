"""What lets Model Runner V2 run our models on a CPU without Triton."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import needs, wraps
from vllm_dllm.models.registry import is_ours

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@contextmanager
def claiming_triton(module: ModuleType) -> Iterator[None]:
    """Let a module of vLLM that asks for Triton find it; one that does not, be."""
    found = vars(module).get("HAS_TRITON", True)
    if not found:
        vars(module)["HAS_TRITON"] = True
    try:
        yield
    finally:
        if not found:
            vars(module)["HAS_TRITON"] = False


@wraps(
    "vllm.config.vllm:VllmConfig.use_v2_model_runner",
    "vllm.config.vllm:VllmConfig._validate_v2_model_runner",
    uses=["vllm.config.vllm:HAS_TRITON"],
)
def open_v2_gate(function: Callable[["VllmConfig"], Any]) -> Callable[..., Any]:
    """Run Model Runner V2 for our models where Triton is missing.

    vLLM refuses it on such machines because of a few Triton kernels; on our path they
    have replacements (`replace_cpu_kernels`). The gate opens for our architectures
    alone. Removable when vLLM's CPU build brings kernels of its own.
    """
    from vllm.config import vllm as module

    def with_gate_open(self: "VllmConfig") -> Any:
        if not is_ours(self.model_config):
            return function(self)
        with claiming_triton(module):
            return function(self)

    return with_gate_open


@needs("vllm.triton_utils.dispatcher:register_kernels")
@functools.cache
def replace_cpu_kernels() -> None:
    """Replace the Triton kernels on our path, in a worker of our models.

    Without a triton-cpu a launch of them fails. Nothing is replaced where Triton works.
    Cached, because vLLM would take the replacements of a second call for the originals
    of the first. Removable with `open_v2_gate`.
    """
    from vllm.triton_utils import HAS_TRITON, triton
    from vllm.triton_utils.dispatcher import register_kernels
    from vllm.utils.math_utils import next_power_of_2

    if HAS_TRITON:
        return
    from vllm_dllm.ops.runner_kernels import KERNELS

    if not hasattr(triton, "next_power_of_2"):  # the placeholder lacks it
        triton.next_power_of_2 = next_power_of_2
    register_kernels(KERNELS)
