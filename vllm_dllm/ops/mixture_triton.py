"""`mix` (mixture.py holds the contract) as a Triton kernel: a program for each row.

No other module may import this one at its head: Triton is only there with vLLM's CUDA
build.
"""

import torch
import triton
import triton.language as tl


def mix(embeddings: torch.Tensor, masks: torch.Tensor, share: torch.Tensor) -> None:
    """As `mixture.mix`, on a GPU. Starts work, waits for nothing."""
    num_rows, hidden = embeddings.shape
    assert embeddings.stride(1) == 1 and masks.stride(1) == 1
    if num_rows:
        _mix_rows[(num_rows,)](
            embeddings,
            embeddings.stride(0),
            masks,
            masks.stride(0) if len(masks) > 1 else 0,
            share,
            hidden,
            WIDTH=triton.next_power_of_2(hidden),
            num_warps=8,
        )


@triton.jit(do_not_specialize=["mask_stride"])
def _mix_rows(
    embeddings_ptr,  # [rows, hidden], any float dtype
    row_stride,
    masks_ptr,  # [1 or rows, hidden], the same
    mask_stride,  # 0 for one row
    share_ptr,  # [rows] float32
    hidden,
    WIDTH: tl.constexpr,
):
    """One row, held in registers; those with a share below 0 are not read."""
    row = tl.program_id(0).to(tl.int64)
    share = tl.load(share_ptr + row)
    if share >= 0:
        column = tl.arange(0, WIDTH)
        inside = column < hidden
        place = embeddings_ptr + row * row_stride + column
        token = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        other = masks_ptr + row * mask_stride + column
        mask = tl.load(other, mask=inside, other=0.0).to(tl.float32)
        mixed = share * token + (1 - share) * mask
        wanted = share * tl.sqrt(tl.sum(token * token, axis=0))
        wanted += (1 - share) * tl.sqrt(tl.sum(mask * mask, axis=0))
        length = tl.sqrt(tl.sum(mixed * mixed, axis=0))
        mixed *= wanted / (length + 1e-6)
        tl.store(place, mixed.to(embeddings_ptr.dtype.element_ty), mask=inside)
