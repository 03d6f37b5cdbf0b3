"""Patches that give LoRA adapters the requests that asked for them, on CPU."""

from collections.abc import Callable
from typing import Any

import torch

from vllm_dllm.compat.patch import wraps

KERNELS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
MODULES = ("vllm.lora.ops.torch_ops.lora_ops", "vllm.lora.punica_wrapper.punica_cpu")


@wraps(*(f"{module}:{kernel}" for module in MODULES for kernel in KERNELS))
def leave_base_rows_alone(function: Callable[..., None]) -> Callable[..., None]:
    """Add no adapter's weights to the rows of requests without one.

    The torch kernels of vLLM 0.32 take index -1, which means no adapter, for the last
    one in memory. Called by CPU workers. Removable with vLLM 0.32.
    """

    def of_adapted_rows(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        adapter: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        rows = (adapter >= 0).nonzero().squeeze(1)
        part = output[rows]
        function(inputs[rows], weights, part, adapter[rows], *args, **kwargs)
        output[rows] = part

    return of_adapted_rows
