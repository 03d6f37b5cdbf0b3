"""CPU implementations of the Triton kernels Model Runner V2 launches itself.

`KERNELS` maps the dotted name of each Triton kernel to a callable that takes the
kernel's launch arguments in the kernel's order. `vllm_dllm.compat` hands it to
vLLM's kernel dispatcher on CPU when no triton-cpu is installed; nothing here touches
vLLM. Kernels of vLLM's own sampler are not among them: our sampler launches none.

The callables come from `native` (C++, a few microseconds each) or, where the
extension was not built or VLLM_DLLM_NATIVE=0, from `fallback` (torch); both leave the
same values behind. They get no launch grid, as the dispatcher drops it: the number of
requests is the length of `idx_mapping`.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from vllm_dllm.ops import extension
from vllm_dllm.ops.runner_kernels import fallback

_NAMES = {
    "vllm.v1.worker.gpu.buffer_utils": ("apply_write",),
    "vllm.v1.worker.gpu.block_table": (
        "gather_block_tables",
        "compute_slot_mappings",
    ),
    "vllm.v1.worker.gpu.input_batch": (
        "prepare_prefill_inputs",
        "prepare_pos_seq_lens",
        "combine_sampled_and_draft_tokens",
        "post_update",
        "post_update_num_computed_tokens",
        "expand_idx_mapping",
    ),
}


def _load() -> ModuleType:
    """The `native` module if the extension may be used, else `fallback`."""
    if extension.load() is None:
        return fallback
    from vllm_dllm.ops.runner_kernels import native

    return native


def kernels_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Triton kernel name -> the implementation of it in `module`."""
    return {
        f"{owner}._{name}_kernel": getattr(module, name)
        for owner, names in _NAMES.items()
        for name in names
    }


KERNELS = kernels_of(_load())
