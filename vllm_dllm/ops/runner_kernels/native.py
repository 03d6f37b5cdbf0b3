"""The runner's Triton kernels over `vllm_dllm._C`.

`fallback` holds their parameters and what they do. Pointers are passed unchecked, so
element types are fixed: those of vLLM's own buffers are what vLLM allocates, those of a
sampler's outputs are converted if need be. The innermost dimension of every tensor is
contiguous.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vllm_dllm.ops import extension
from vllm_dllm.ops.runner_kernels import fallback

Launch = Callable[..., None]

_C: Any = extension.load()


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _expression(argument: str) -> str:
    """Python for an argument of C++, as `_native` explains them."""
    name, _, dtype = argument.lstrip("*?#").partition(":")
    tensor = f"({name} := _as({name}, {dtype}))" if dtype else name
    forms = {
        "*": f"{tensor}.data_ptr()",
        "?": f"0 if {name} is None else {name}.data_ptr()",
        "#": f"{name}.shape[0]",
    }
    return forms.get(argument[0], argument)


def _native(kernel: Launch, arguments: str, function: str | None = None) -> Launch:
    """A C++ function as one that takes the launch arguments of a kernel.

    The call is written out here, once: at each launch, a loop over the arguments would
    take longer than the work.

    Args:
        kernel: the one in `fallback`, whose parameters are taken.
        arguments: what C++ is given, by the names of the parameters: the address of
            tensor `*x`, after a conversion if need be of `*x:int64`, of `?x` or 0 where
            there is none, the length of `#x`, the number `x`. Capitals are constants.
        function: its name in C++, where it is not the kernel's.
    """
    empty = inspect.Signature.empty
    parameters = inspect.signature(kernel).parameters.values()
    signature = inspect.Signature([one.replace(annotation=empty) for one in parameters])
    taken = str(signature)[1:-1]
    given = ", ".join(map(_expression, arguments.split()))
    call = getattr(_C, function or kernel.__name__)
    scope = {"call": call, "_as": _as, "int32": torch.int32, "int64": torch.int64}
    launch: Launch = eval(f"lambda {taken}: call({given})", scope)
    return launch


gather_block_tables = _native(
    fallback.gather_block_tables,
    "#strides num_reqs *idx_mapping *sources *destinations *strides *num_blocks "
    "num_blocks_stride",
)
compute_slot_mappings = _native(
    fallback.compute_slot_mappings,
    "#block_sizes #idx_mapping max_num_tokens *idx_mapping *query_start_loc "
    "*positions *block_tables *block_table_strides *block_sizes "
    "*slot_mapping_enabled *slot_mappings slot_mappings_stride PAD_ID",
)
prepare_prefill_inputs = _native(
    fallback.prepare_prefill_inputs,
    "#idx_mapping *input_ids *next_prefill_tokens next_prefill_tokens_stride "
    "num_lookahead *idx_mapping *query_start_loc *all_token_ids all_token_ids_stride "
    "*prefill_lens *num_computed_tokens",
)
prepare_pos_seq_lens = _native(
    fallback.prepare_pos_seq_lens,
    "#idx_mapping *positions *seq_lens *idx_mapping *query_start_loc "
    "*num_computed_tokens max_num_reqs",
)
combine_sampled_and_draft_tokens = _native(
    fallback.combine_sampled_and_draft_tokens,
    "#idx_mapping *input_ids *idx_mapping *last_sampled_tokens *query_start_loc "
    "*seq_lens *prefill_lens *draft_tokens draft_tokens_stride *cu_num_logits "
    "*logits_indices NUM_NEW_SAMPLED_TOKENS",
)
post_update_num_computed_tokens = _native(
    fallback.post_update_num_computed_tokens,
    "#idx_mapping *idx_mapping *num_computed_tokens *query_start_loc",
)
expand_idx_mapping = _native(
    fallback.expand_idx_mapping,
    "#idx_mapping *idx_mapping *expanded_idx_mapping *expanded_local_pos "
    "*cu_num_logits",
)
post_update = _native(
    fallback.post_update,
    # The stride is asked again: a conversion may have changed it.
    "#idx_mapping *idx_mapping *num_computed_tokens *last_sampled_tokens "
    "?output_bin_counts output_bin_counts_stride *sampled_tokens:int64 "
    "sampled_tokens.stride(0) *num_sampled:int32 *num_rejected:int32 "
    "?query_start_loc *all_token_ids all_token_ids_stride *total_lens",
)
_apply_write = _native(
    fallback.apply_write,
    "#indices output.element_size() *output output_stride *indices *starts "
    "*contents:output.dtype *cu_lens",
)
_apply_write_groups = _native(
    fallback.apply_write,
    "#indices *output *output_stride *indices *starts *contents *cu_lens *group_ids",
    "apply_write_groups",
)


def apply_write(*args: Any, MULTI_GROUP: bool, **_: object) -> None:
    """As in `fallback`; C++ has a function for each case."""
    call = _apply_write_groups if MULTI_GROUP else _apply_write
    call(*args, MULTI_GROUP=MULTI_GROUP)
