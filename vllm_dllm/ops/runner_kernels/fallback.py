"""The runner's Triton kernels in torch, for installs without the extension.

Parameters are the kernels', in their order; block sizes and warp counts mean nothing
here and are swallowed. The innermost dimension of every tensor is contiguous. One set
of torch ops per call (per KV cache group where tables are raw addresses), never a loop
over requests or tokens.
"""

import ctypes

import torch
from torch import Tensor


def _flat(tensor: Tensor) -> Tensor:
    """`tensor`'s memory from its first element on: [elements]."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((size - tensor.storage_offset(),), (1,))


def _table(address: int, rows: int, stride: int) -> Tensor:
    """The int32 table [rows, stride] at `address`, as a view."""
    memory = (ctypes.c_int32 * (rows * stride)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.int32).view(rows, stride)


def _ragged(lens: Tensor) -> tuple[Tensor, Tensor]:
    """(row, offset) of each element of rows of `lens` elements: [lens.sum()] int64."""
    rows = torch.repeat_interleave(lens)
    starts = lens.cumsum(0) - lens
    return rows, torch.arange(rows.shape[0]) - starts[rows]


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
    writes, offsets = _ragged(cu_lens.diff(prepend=cu_lens.new_zeros(1)).long())
    columns = starts[writes] + offsets
    rows = indices[writes].long()
    if not MULTI_GROUP:
        _flat(output)[rows * output_stride + columns] = contents.to(output.dtype)
        return
    assert isinstance(output_stride, Tensor) and group_ids is not None
    groups = group_ids[writes]
    for group, (address, stride) in enumerate(
        zip(output.tolist(), output_stride.tolist(), strict=True)
    ):
        mine = groups == group
        if mine.any():
            table = _table(address, int(rows[mine].max()) + 1, stride)
            table[rows[mine], columns[mine]] = contents[mine]


def gather_block_tables(
    idx_mapping: Tensor,
    sources: Tensor,
    destinations: Tensor,
    strides: Tensor,
    num_blocks: Tensor,
    num_blocks_stride: int,
    num_reqs: int,
    *sliding_windows: object,
    **_: object,
) -> None:
    """Copy each request's block ids to its row of the batch, for every group.

    idx_mapping: [num_reqs] int64. sources, destinations: [num_groups] uint64
    addresses of int32 tables. strides: [num_groups] int64.
    num_blocks: [num_groups, max_num_reqs] int32.

    Rows past `num_reqs` are left alone: the kernel zeroes as many as the grid has
    (which is not passed on), and only CUDA graphs pad requests. `sliding_windows`, of
    vLLM 0.33, are those of layers that our models do not have.
    """
    if num_reqs == 0:
        return
    num_slots = int(idx_mapping.max()) + 1
    for group, (source, destination, stride) in enumerate(
        zip(sources.tolist(), destinations.tolist(), strides.tolist(), strict=True)
    ):
        rows = _table(source, num_slots, stride)[idx_mapping]
        out = _table(destination, num_reqs, stride)
        used = torch.arange(stride) < num_blocks[group, idx_mapping, None]
        out.copy_(torch.where(used, rows, out))


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
    num_reqs = idx_mapping.shape[0]
    query_start_loc = query_start_loc[: num_reqs + 1]
    num_tokens = int(query_start_loc[-1])
    slot_mappings[:, num_tokens:max_num_tokens] = PAD_ID
    if num_tokens == 0:
        return
    slots = idx_mapping[torch.repeat_interleave(query_start_loc.diff())]
    positions = positions[:num_tokens]
    num_slots = int(slots.max()) + 1
    for group, (address, stride, block_size, enabled) in enumerate(
        zip(
            block_tables.tolist(),
            block_table_strides.tolist(),
            block_sizes.tolist(),
            slot_mapping_enabled.tolist(),
            strict=True,
        )
    ):
        out = slot_mappings[group, :num_tokens]
        if not enabled or num_slots == 0:
            out.fill_(PAD_ID)
            continue
        blocks = positions // block_size
        valid = (slots >= 0) & (blocks < stride)
        # Clamped for the look-up only: what is not valid is overwritten below.
        rows, columns = slots.clamp(min=0), blocks.clamp(max=stride - 1)
        block_ids = _table(address, num_slots, stride)[rows, columns].long()
        mapped = block_ids * block_size + positions % block_size
        out.copy_(mapped.masked_fill_(~valid, PAD_ID))


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
    num_reqs = idx_mapping.shape[0]
    prefilling = num_computed_tokens[idx_mapping] < prefill_lens[idx_mapping]
    slots = idx_mapping[prefilling]
    query_lens = query_start_loc[: num_reqs + 1].diff()[prefilling].long()
    starts = query_start_loc[:num_reqs][prefilling]
    num_computed = num_computed_tokens[slots].long()
    token_ids = all_token_ids[:, :all_token_ids_stride]

    known = query_lens.minimum(token_ids.shape[1] - num_computed)
    reqs, offsets = _ragged(known)
    tokens = token_ids[slots[reqs], num_computed[reqs] + offsets]
    input_ids[starts[reqs] + offsets] = tokens

    ahead = torch.arange(num_lookahead)[:, None] + num_computed + query_lens
    in_prompt = ahead < prefill_lens[slots]
    tokens = token_ids[slots, ahead.clamp(max=token_ids.shape[1] - 1)]
    next_prefill_tokens[:num_lookahead, slots] = tokens.masked_fill_(~in_prompt, 0)


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
    num_reqs = idx_mapping.shape[0]
    query_lens = query_start_loc[: num_reqs + 1].diff()
    num_computed = num_computed_tokens[idx_mapping]
    seq_lens[:num_reqs] = num_computed + query_lens
    seq_lens[num_reqs:max_num_reqs] = 0
    reqs, offsets = _ragged(query_lens.long())
    positions[query_start_loc[reqs] + offsets] = num_computed[reqs] + offsets


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
    num_reqs = idx_mapping.shape[0]
    num_logits = cu_num_logits[: num_reqs + 1].diff().long()
    query_ends = query_start_loc[1 : num_reqs + 1].long()
    logits_starts = query_ends - num_logits
    reqs, offsets = _ragged(num_logits)
    logits_indices[cu_num_logits[reqs] + offsets] = logits_starts[reqs] + offsets

    prefill_lens = prefill_lens[idx_mapping]
    seq_lens = seq_lens[:num_reqs]
    generating = seq_lens > prefill_lens
    if NUM_NEW_SAMPLED_TOKENS > 0:
        # A logits row that still belongs to the prompt keeps its prompt token.
        sampled = generating & (seq_lens - num_logits >= prefill_lens)
        last_sampled = last_sampled_tokens.flatten()[idx_mapping[sampled]]
        input_ids[logits_starts[sampled]] = last_sampled.to(input_ids.dtype)

    num_drafts = (num_logits - NUM_NEW_SAMPLED_TOKENS).clamp_(min=0) * generating
    reqs, offsets = _ragged(num_drafts)
    drafts = draft_tokens[idx_mapping[reqs], offsets].to(input_ids.dtype)
    input_ids[query_ends[reqs] - num_drafts[reqs] + offsets] = drafts


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
    *drafts: object,
    **_: object,
) -> None:
    """Append each request's sampled tokens to its state and advance its counts.

    idx_mapping: [num_reqs] int64, negative to skip. sampled_tokens: [num_reqs, width]
    int64. num_sampled, num_rejected: [num_reqs] int32. output_bin_counts:
    [max_num_reqs, vocab_size] int32 or None. total_lens: [max_num_reqs] int32.
    Without query_start_loc only rejected tokens are counted. `drafts`, of vLLM 0.33,
    are those that pipeline parallelism sends on.
    """
    num_reqs = idx_mapping.shape[0]
    active = idx_mapping >= 0
    slots = idx_mapping[active]
    counts = num_sampled[:num_reqs][active].long()
    sampled_tokens = sampled_tokens[:num_reqs][active]

    reqs, offsets = _ragged(counts)
    tokens = sampled_tokens[reqs, offsets]
    columns = total_lens[slots].long()[reqs] + offsets
    fits = columns < all_token_ids_stride
    token_ids = tokens.to(all_token_ids.dtype)[fits]
    all_token_ids[slots[reqs[fits]], columns[fits]] = token_ids
    if output_bin_counts is not None:
        ones = output_bin_counts.new_ones(())
        output_bin_counts.index_put_((slots[reqs], tokens.long()), ones, True)

    emitted = counts > 0
    last = sampled_tokens[emitted, counts[emitted] - 1]
    last_sampled_tokens.view(-1)[slots[emitted]] = last.to(last_sampled_tokens.dtype)
    total_lens[slots] += counts.to(total_lens.dtype)

    delta = -num_rejected[:num_reqs][active].to(num_computed_tokens.dtype)
    if query_start_loc is not None:
        delta += query_start_loc[: num_reqs + 1].diff()[active]
    num_computed_tokens[slots] += delta


def post_update_num_computed_tokens(
    idx_mapping: Tensor,
    num_computed_tokens: Tensor,
    query_start_loc: Tensor,
    **_: object,
) -> None:
    """Count every scheduled token as computed (ranks that do not sample).

    idx_mapping: [num_reqs] int64. num_computed_tokens: [max_num_reqs] int32.
    query_start_loc: [num_reqs + 1] int32.
    """
    query_lens = query_start_loc[: idx_mapping.shape[0] + 1].diff()
    num_computed_tokens[idx_mapping] += query_lens


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
    num_logits = cu_num_logits[: idx_mapping.shape[0] + 1].diff().long()
    reqs, offsets = _ragged(num_logits)
    rows = cu_num_logits[reqs] + offsets
    expanded_idx_mapping[rows] = idx_mapping[reqs]
    expanded_local_pos[rows] = offsets.to(expanded_local_pos.dtype)
