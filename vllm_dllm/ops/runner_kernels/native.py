"""Launch signatures of the runner's Triton kernels over `vllm_dllm._C`.

Parameters are the kernels', in their order; block sizes and warp counts mean nothing
here and are swallowed. Pointers are passed unchecked, so element types are fixed:
those of vLLM's own buffers are what vLLM allocates, those of a sampler's outputs are
converted if need be. The innermost dimension of every tensor is contiguous.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

_C: Any = importlib.import_module("vllm_dllm._C")


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def apply_write(
    output: Tensor,
    output_stride: int | Tensor,
    indices: Tensor,
    starts: Tensor,
    contents: Tensor,
    cu_lens: Tensor,
    group_ids: Tensor | None,
    *,
    MULTI_GROUP: bool,
    **_: object,
) -> None:
    """Copy write i, `contents[cu_lens[i-1]:cu_lens[i]]`, to row `indices[i]`.

    output: [rows, width], 4 or 8 byte elements; with MULTI_GROUP the addresses of
    one int32 table per group: [num_groups] uint64.
    output_stride: its row stride; with MULTI_GROUP [num_groups] int64.
    indices, starts, cu_lens: [num_writes] int32. contents: [total], as the output.
    group_ids: [num_writes] int32, MULTI_GROUP only.
    """
    if MULTI_GROUP:
        assert isinstance(output_stride, Tensor) and group_ids is not None
        _C.apply_write_groups(
            indices.shape[0],
            output.data_ptr(),
            output_stride.data_ptr(),
            indices.data_ptr(),
            starts.data_ptr(),
            contents.data_ptr(),
            cu_lens.data_ptr(),
            group_ids.data_ptr(),
        )
    else:
        _C.apply_write(
            indices.shape[0],
            output.element_size(),
            output.data_ptr(),
            output_stride,
            indices.data_ptr(),
            starts.data_ptr(),
            _as(contents, output.dtype).data_ptr(),
            cu_lens.data_ptr(),
        )


def gather_block_tables(
    idx_mapping: Tensor,
    sources: Tensor,
    destinations: Tensor,
    strides: Tensor,
    num_blocks: Tensor,
    num_blocks_stride: int,
    num_reqs: int,
    **_: object,
) -> None:
    """Copy each request's block ids to its row of the batch, for every group.

    idx_mapping: [num_reqs] int64. sources, destinations: [num_groups] uint64
    addresses of int32 tables. strides: [num_groups] int64.
    num_blocks: [num_groups, max_num_reqs] int32.

    Rows past `num_reqs` are left alone: the kernel zeroes as many as the grid has
    (which is not passed on), and only CUDA graphs pad requests.
    """
    _C.gather_block_tables(
        strides.shape[0],
        num_reqs,
        idx_mapping.data_ptr(),
        sources.data_ptr(),
        destinations.data_ptr(),
        strides.data_ptr(),
        num_blocks.data_ptr(),
        num_blocks_stride,
    )


def compute_slot_mappings(
    max_num_tokens: int,
    idx_mapping: Tensor,
    query_start_loc: Tensor,
    positions: Tensor,
    block_tables: Tensor,
    block_table_strides: Tensor,
    block_sizes: Tensor,
    slot_mapping_enabled: Tensor,
    dcp_sharded: Tensor,
    slot_mappings: Tensor,
    slot_mappings_stride: int,
    cp_rank: int,
    *,
    CP_SIZE: int,
    PAD_ID: int,
    **_: object,
) -> None:
    """Write the KV cache slot of every token, PAD_ID for those that have none.

    idx_mapping: [num_reqs] int64, negative for a request without blocks.
    query_start_loc: [num_reqs + 1] int32. positions: [num_tokens] int64.
    block_tables: [num_groups] uint64. block_table_strides: [num_groups] int64.
    block_sizes: [num_groups] int32. slot_mapping_enabled: [num_groups] bool.
    slot_mappings: [num_groups, max_num_tokens] int64, written to its end.
    """
    assert CP_SIZE == 1, "context parallelism is not supported on CPU"
    _C.compute_slot_mappings(
        block_sizes.shape[0],
        idx_mapping.shape[0],
        max_num_tokens,
        idx_mapping.data_ptr(),
        query_start_loc.data_ptr(),
        positions.data_ptr(),
        block_tables.data_ptr(),
        block_table_strides.data_ptr(),
        block_sizes.data_ptr(),
        slot_mapping_enabled.data_ptr(),
        slot_mappings.data_ptr(),
        slot_mappings_stride,
        PAD_ID,
    )


def prepare_prefill_inputs(
    input_ids: Tensor,
    next_prefill_tokens: Tensor,
    next_prefill_tokens_stride: int,
    num_lookahead: int,
    idx_mapping: Tensor,
    query_start_loc: Tensor,
    all_token_ids: Tensor,
    all_token_ids_stride: int,
    prefill_lens: Tensor,
    num_computed_tokens: Tensor,
    **_: object,
) -> None:
    """Copy prompt tokens of requests still in prefill to the flat batch.

    input_ids: [max_num_tokens] int32. next_prefill_tokens: [num_lookahead,
    max_num_reqs] int32: the prompt tokens after the scheduled ones, 0 past the prompt.
    all_token_ids: [max_num_reqs, max_model_len] int32.
    prefill_lens, num_computed_tokens: [max_num_reqs] int32.
    """
    _C.prepare_prefill_inputs(
        idx_mapping.shape[0],
        input_ids.data_ptr(),
        next_prefill_tokens.data_ptr(),
        next_prefill_tokens_stride,
        num_lookahead,
        idx_mapping.data_ptr(),
        query_start_loc.data_ptr(),
        all_token_ids.data_ptr(),
        all_token_ids_stride,
        prefill_lens.data_ptr(),
        num_computed_tokens.data_ptr(),
    )


def prepare_pos_seq_lens(
    positions: Tensor,
    seq_lens: Tensor,
    idx_mapping: Tensor,
    query_start_loc: Tensor,
    num_computed_tokens: Tensor,
    max_num_reqs: int,
    **_: object,
) -> None:
    """Write token positions and request lengths; seq_lens past the batch become 0.

    positions: [max_num_tokens] int64. seq_lens: [max_num_reqs] int32.
    """
    _C.prepare_pos_seq_lens(
        idx_mapping.shape[0],
        positions.data_ptr(),
        seq_lens.data_ptr(),
        idx_mapping.data_ptr(),
        query_start_loc.data_ptr(),
        num_computed_tokens.data_ptr(),
        max_num_reqs,
    )


def combine_sampled_and_draft_tokens(
    input_ids: Tensor,
    idx_mapping: Tensor,
    last_sampled_tokens: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    prefill_lens: Tensor,
    draft_tokens: Tensor,
    draft_tokens_stride: int,
    cu_num_logits: Tensor,
    logits_indices: Tensor,
    *,
    NUM_NEW_SAMPLED_TOKENS: int = 1,
    **_: object,
) -> None:
    """Write the batch rows that get logits, and generated tokens' input ids.

    last_sampled_tokens: [max_num_reqs, 1] int64. draft_tokens: [max_num_reqs,
    num_speculative_steps] int64. cu_num_logits: [num_reqs + 1] int32.
    logits_indices: [num_logits] int64.
    """
    _C.combine_sampled_and_draft_tokens(
        idx_mapping.shape[0],
        input_ids.data_ptr(),
        idx_mapping.data_ptr(),
        last_sampled_tokens.data_ptr(),
        query_start_loc.data_ptr(),
        seq_lens.data_ptr(),
        prefill_lens.data_ptr(),
        draft_tokens.data_ptr(),
        draft_tokens_stride,
        cu_num_logits.data_ptr(),
        logits_indices.data_ptr(),
        NUM_NEW_SAMPLED_TOKENS,
    )


def post_update(
    idx_mapping: Tensor,
    num_computed_tokens: Tensor,
    last_sampled_tokens: Tensor,
    output_bin_counts: Tensor | None,
    output_bin_counts_stride: int,
    sampled_tokens: Tensor,
    sampled_tokens_stride: int,
    num_sampled: Tensor,
    num_rejected: Tensor,
    query_start_loc: Tensor | None,
    all_token_ids: Tensor,
    all_token_ids_stride: int,
    total_lens: Tensor,
    **_: object,
) -> None:
    """Append each request's sampled tokens to its state and advance its counts.

    idx_mapping: [num_reqs] int64, negative to skip. sampled_tokens: [num_reqs, width]
    int64. num_sampled, num_rejected: [num_reqs] int32. output_bin_counts:
    [max_num_reqs, vocab_size] int32 or None. total_lens: [max_num_reqs] int32.
    Without query_start_loc only rejected tokens are counted.
    """
    sampled_tokens = _as(sampled_tokens, torch.int64)
    num_sampled = _as(num_sampled, torch.int32)
    num_rejected = _as(num_rejected, torch.int32)
    _C.post_update(
        idx_mapping.shape[0],
        idx_mapping.data_ptr(),
        num_computed_tokens.data_ptr(),
        last_sampled_tokens.data_ptr(),
        0 if output_bin_counts is None else output_bin_counts.data_ptr(),
        output_bin_counts_stride,
        sampled_tokens.data_ptr(),
        # Not the argument: a conversion above may have changed the stride.
        sampled_tokens.stride(0),
        num_sampled.data_ptr(),
        num_rejected.data_ptr(),
        0 if query_start_loc is None else query_start_loc.data_ptr(),
        all_token_ids.data_ptr(),
        all_token_ids_stride,
        total_lens.data_ptr(),
    )


def post_update_num_computed_tokens(
    idx_mapping: Tensor,
    num_computed_tokens: Tensor,
    query_start_loc: Tensor,
    **_: object,
) -> None:
    """Count every scheduled token as computed (ranks that do not sample)."""
    _C.post_update_num_computed_tokens(
        idx_mapping.shape[0],
        idx_mapping.data_ptr(),
        num_computed_tokens.data_ptr(),
        query_start_loc.data_ptr(),
    )


def expand_idx_mapping(
    idx_mapping: Tensor,
    expanded_idx_mapping: Tensor,
    expanded_local_pos: Tensor,
    cu_num_logits: Tensor,
    **_: object,
) -> None:
    """Repeat each request's slot once per logits row, with the row's number.

    expanded_idx_mapping: [num_logits] int64. expanded_local_pos: [num_logits] int32.
    """
    _C.expand_idx_mapping(
        idx_mapping.shape[0],
        idx_mapping.data_ptr(),
        expanded_idx_mapping.data_ptr(),
        expanded_local_pos.data_ptr(),
        cu_num_logits.data_ptr(),
    )
