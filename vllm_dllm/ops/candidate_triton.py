"""`candidates` (candidate.py holds the contract) as Triton kernels: each logit is read
once, and nothing of the size of the logits is written.

A program reduces one slice of one row in registers; a second kernel joins the slices
of a row. Slices have one size, whatever the number of rows: 32 rows of a large
vocabulary are more than a thousand programs, which fill a large GPU, and a row gets the
same answer, to the last bit, alone and in any batch.

No other module may import this one at its head: Triton is only there with vLLM's CUDA
build.
"""

import torch
import triton
import triton.language as tl

SLICE = 4096
"""Logits that a program holds in registers: 16 for each thread of 8 warps."""


def candidates(
    logits: torch.Tensor, mask_token_id: int, measures: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `candidate.candidates`, for logits on a GPU. Starts work, waits for nothing.

    A row without a finite logit gets a token, and no meaningful confidence.

    Returns:
        token: [rows] int64.
        found: [1 or 3, rows] float32: confidence; with measures also entropy, margin.
    """
    num_rows, vocab = logits.shape
    assert logits.stride(1) == 1 or vocab == 1
    device = logits.device
    num_slices = triton.cdiv(vocab, SLICE)
    values = torch.empty(4 if measures else 2, num_rows, num_slices, device=device)
    ids = torch.empty(num_rows, num_slices, dtype=torch.int32, device=device)
    found = torch.empty(3 if measures else 1, num_rows, device=device)
    token = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows:
        _reduce_slices[(num_rows, num_slices)](
            logits,
            logits.stride(0),
            vocab,
            mask_token_id,
            values,
            ids,
            num_rows * num_slices,
            SLICE=SLICE,
            MEASURES=measures,
            num_warps=8,
        )
        _join_slices[(num_rows,)](
            values,
            ids,
            num_slices,
            num_rows,
            token,
            found,
            SLICES=triton.next_power_of_2(num_slices),
            MEASURES=measures,
            num_warps=1,
        )
    return token, found


@triton.jit(do_not_specialize=["mask_token_id", "size"])
def _reduce_slices(
    logits_ptr,  # [rows, vocab], any float dtype
    row_stride,
    vocab,
    mask_token_id,
    values_ptr,  # [2 or 4, rows, slices] float32
    ids_ptr,  # [rows, slices] int32
    size,  # rows * slices
    SLICE: tl.constexpr,
    MEASURES: tl.constexpr,
):
    """Of one slice of a row: its best logit b and that token, the sum of exp(x - b),
    and for `MEASURES` the sum of exp(x - b) * (x - b) and the second best logit."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    # The mask token is left out afterwards: a hole in what is loaded would make the
    # loads single ones.
    x = tl.load(
        logits_ptr + row * row_stride + column,
        mask=column < vocab,
        other=float("-inf"),
    ).to(tl.float32)
    x = tl.where(column == mask_token_id, float("-inf"), x)
    best = tl.max(x, axis=0)
    token = tl.min(tl.where(x == best, column, vocab - 1), axis=0)
    # A slice of nothing but -inf must not give -inf - -inf.
    below = x - tl.where(best == float("-inf"), 0.0, best)
    weight = tl.exp(below)
    place = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(ids_ptr + place, token)
    tl.store(values_ptr + place, best)
    tl.store(values_ptr + size + place, tl.sum(weight, axis=0))
    if MEASURES:
        moment = tl.sum(tl.where(weight > 0, weight * below, 0.0), axis=0)
        second = tl.max(tl.where(column == token, float("-inf"), x), axis=0)
        tl.store(values_ptr + 2 * size + place, moment)
        tl.store(values_ptr + 3 * size + place, second)


@triton.jit(do_not_specialize=["num_slices", "num_rows"])
def _join_slices(
    values_ptr,  # [2 or 4, rows, slices] float32
    ids_ptr,  # [rows, slices] int32
    num_slices,
    num_rows,
    token_ptr,  # [rows] int64
    found_ptr,  # [1 or 3, rows] float32: confidence, entropy in nats, margin
    SLICES: tl.constexpr,
    MEASURES: tl.constexpr,
):
    """The answer for a row, from what `_reduce_slices` left of its slices."""
    row = tl.program_id(0)
    index = tl.arange(0, SLICES)
    inside = index < num_slices
    place = row.to(tl.int64) * num_slices + index
    size = num_rows.to(tl.int64) * num_slices
    best = tl.load(values_ptr + place, mask=inside, other=float("-inf"))
    total = tl.load(values_ptr + size + place, mask=inside, other=0.0)
    token = tl.load(ids_ptr + place, mask=inside, other=2147483647)
    top = tl.max(best, axis=0)
    chosen = tl.min(tl.where(best == top, token, 2147483647), axis=0)
    # NaN equals nothing: whatever the logits were, a token is in the vocabulary.
    chosen = tl.minimum(chosen, tl.max(tl.where(inside, token, 0), axis=0))
    below = best - top
    scale = tl.exp(below)
    sum_of_row = tl.sum(total * scale, axis=0)
    tl.store(token_ptr + row, chosen.to(tl.int64))
    tl.store(found_ptr + row, 1.0 / sum_of_row)
    if MEASURES:
        # With w = exp(x - top) and W their sum, H = ln W - sum(w (x - top)) / W.
        moment = tl.load(values_ptr + 2 * size + place, mask=inside, other=0.0)
        moment = tl.where(scale > 0, scale * (moment + total * below), 0.0)
        entropy = tl.log(sum_of_row) - tl.sum(moment, axis=0) / sum_of_row
        second = tl.load(
            values_ptr + 3 * size + place, mask=inside, other=float("-inf")
        )
        second = tl.maximum(second, tl.where(token == chosen, float("-inf"), best))
        lead = (1.0 - tl.exp(tl.max(second, axis=0) - top)) / sum_of_row
        tl.store(found_ptr + num_rows + row, entropy)
        tl.store(found_ptr + 2 * num_rows + row, lead)
