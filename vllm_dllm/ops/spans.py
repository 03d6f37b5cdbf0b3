"""The layout of a step: blocks, known tokens and rows of logits of its spans.

On CPU by csrc/, elsewhere and without it in torch. `n` requests.
"""

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.ops.extension import addresses, load_for


def block_of(
    slot: torch.Tensor,
    known: torch.Tensor,
    origin: torch.Tensor,
    block: torch.Tensor,
    end: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """First position and length of the block that holds position `known`, each [n]
    int64 (as `Grid.start_of` and `Grid.end_of`).

    Args:
        slot, known: [n] int64.
        origin, block, end: [num_slots] int64: the grids.
    """
    native = load_for(known)
    if native is None:
        first, length = origin[slot], block[slot]
        start = first + (known - first) // length * length
        return start, torch.minimum(length, end[slot] - start)
    start, length = torch.empty_like(known), torch.empty_like(known)
    tensors = slot, known, origin, block, end, start, length
    native.block_of(known.shape[0], *addresses(*tensors))
    return start, length


def tokens_of(
    query_start_loc: torch.Tensor, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens of a step are of which request.

    Args:
        query_start_loc: [n + 1] int32: where the tokens of each begin in the batch.
        num_tokens: of all.

    Returns:
        `query_start_loc`, [n + 1] int64, and the request of each token, [num_tokens]
        int64.
    """
    native = load_for(query_start_loc)
    if native is None:
        query_start = query_start_loc.long()
        length = query_start.diff()
        return query_start, torch.repeat_interleave(length, output_size=num_tokens)
    query_start = torch.empty_like(query_start_loc, dtype=torch.int64)
    owner = query_start.new_empty(num_tokens)
    n = query_start_loc.shape[0] - 1
    native.tokens_of(n, *addresses(query_start_loc, query_start, owner))
    return query_start, owner


def bounds_of(
    query_start: torch.Tensor, position: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """First position of each request in a step, and one past its last; [n] int64.

    Args:
        query_start: [n + 1] int64: where the tokens of each begin in the batch.
        position: [num_tokens] int64, those of a request one after the other.
    """
    native = load_for(position)
    if native is None:
        start = position[query_start[:-1]]
        return start, start + query_start.diff()
    n = query_start.shape[0] - 1
    start, end = position.new_empty(n), position.new_empty(n)
    native.bounds_of(n, *addresses(query_start, position, start, end))
    return start, end


def show_known(
    ids: torch.Tensor,
    owner: torch.Tensor,
    position: torch.Tensor,
    slot: torch.Tensor,
    shown: torch.Tensor,
    all_token_ids: torch.Tensor,
) -> None:
    """Put known tokens where the model is shown them, in place.

    Args:
        ids, owner, position: [num_tokens] int64: what is shown otherwise, index of the
            request in the batch, position in its sequence.
        slot, shown: [n] int64: slot of a request, how many tokens are shown.
        all_token_ids: [num_slots, max_len] int32, known tokens of all slots.
    """
    native = load_for(ids)
    last = all_token_ids.shape[1] - 1
    if native is None:
        known = all_token_ids[slot[owner], position.clamp(max=last)].long()
        ids.copy_(torch.where(position < shown[owner], known, ids))
        return
    tensors = addresses(owner, position, slot, shown, all_token_ids)
    stride = all_token_ids.stride(0)
    native.show_known(ids.shape[0], last, *tensors, stride, ids.data_ptr())


def of_rings(
    owner: torch.Tensor,
    position: torch.Tensor,
    slot: torch.Tensor,
    shown: torch.Tensor,
    room: torch.Tensor,
    blocks: torch.Tensor,
    all_token_ids: torch.Tensor,
) -> torch.Tensor:
    """[num_tokens] int64: known tokens where the model is shown them; behind them what
    is kept of blocks, position p in column p mod `room` of its slot.

    Args:
        owner, position, slot, shown, all_token_ids: as in `show_known`.
        room: [num_slots] int64; blocks: [num_slots, positions] int64.
    """
    native = load_for(position)
    of_tokens = owner, position, slot, shown
    if native is None:
        slots = slot[owner]
        ids = blocks[slots, position % room[slots]]
        show_known(ids, *of_tokens, all_token_ids)
        return ids
    ids, last = torch.empty_like(position), all_token_ids.shape[1] - 1
    native.of_rings(
        ids.shape[0],
        last,
        *addresses(*of_tokens, room),
        *(blocks.data_ptr(), blocks.stride(0)),
        *(all_token_ids.data_ptr(), all_token_ids.stride(0)),
        ids.data_ptr(),
    )
    return ids


def logit_rows(
    request: torch.Tensor,
    position: torch.Tensor,
    query_start: torch.Tensor,
    start: torch.Tensor,
    shift: int,
) -> torch.Tensor:
    """[rows] int64: the hidden states that predict some positions, of those of their
    requests.

    Args:
        request, position: [rows] int64: index in the batch, absolute position.
        query_start: [n + 1] int64; start: [n] int64: as in `SpanBatch`.
        shift: how many rows before its own a position is predicted.
    """
    native = load_for(position)
    if native is None:
        first, end = query_start[:-1], query_start[1:]
        row = (first - start - shift)[request] + position
        return row.clamp(first[request], end[request] - 1)
    rows = torch.empty_like(position)
    tensors = request, position, query_start, start, rows
    native.logit_rows(rows.shape[0], shift, *addresses(*tensors))
    return rows


def block_rows(
    query_start_loc: torch.Tensor,
    num_tokens_np: np.ndarray,
    seq_lens: torch.Tensor,
    block: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens of a step in rows of one block of one request, in their order.

    Args:
        query_start_loc: [n + 1] int32: as in `tokens_of`.
        num_tokens_np: [n] int32, on the CPU: how many are of each request.
        seq_lens: [n] int32: one past the last position of each request.
        block: length of a row; the last one of a request may be shorter.

    Returns:
        Where the tokens of each row begin, [rows + 1] int32, on the CPU and on the
        device; the request of each row, [rows] int64; one past its last position,
        [rows] int32.
    """
    native = load_for(seq_lens)
    rows_np = -(-num_tokens_np // block)
    num_rows = int(rows_np.sum())
    if native is not None:
        query_start = seq_lens.new_empty(num_rows + 1)
        owner = seq_lens.new_empty(num_rows, dtype=torch.int64)
        row_lens = seq_lens.new_empty(num_rows)
        tensors = query_start_loc, seq_lens, query_start, owner, row_lens
        native.block_rows(num_tokens_np.shape[0], block, *addresses(*tensors))
        return query_start, query_start, owner, row_lens
    device, end_np = seq_lens.device, num_tokens_np.cumsum()
    # Of each row its request, and how far before the end of the span it ends.
    owner_np, left_np = on_host = np.empty((2, num_rows), dtype=np.int64)
    owner_np[:] = np.arange(len(num_tokens_np)).repeat(rows_np)
    # Rows of a request begin `block` apart, the first one where the span does.
    order_np = np.arange(num_rows) - (rows_np.cumsum() - rows_np)[owner_np]
    query_start_np = np.empty(num_rows + 1, dtype=np.int32)
    query_start_np[:-1] = (end_np - num_tokens_np)[owner_np] + order_np * block
    query_start_np[-1] = end_np[-1]
    np.subtract(end_np[owner_np], query_start_np[1:], out=left_np)
    owner, left = async_tensor_h2d(on_host, device)
    return (
        torch.from_numpy(query_start_np),
        async_tensor_h2d(query_start_np, device),
        owner,
        (seq_lens[owner] - left).to(torch.int32),
    )
