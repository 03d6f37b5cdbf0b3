"""Patches that give LoRA adapters the requests that asked for them, on CPU."""

from collections.abc import Callable
from typing import Any

import torch

from vllm_dllm.compat.patch import wrap_once

KERNELS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


def leave_base_rows_alone() -> None:
    """Add no adapter's weights to the rows of requests without one.

    vLLM's torch kernels take index -1, which means no adapter, for the last one in
    memory. Called by CPU workers; the second call does nothing. Removable with vLLM's
    pull request 48421 or 49656.
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    def wrapper(function: Callable[..., None]) -> Callable[..., None]:
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

    for module in (lora_ops, punica_cpu):
        for name in KERNELS:
            wrap_once(module, name, wrapper)
