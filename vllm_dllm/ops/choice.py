"""Which positions of a block become tokens: how many, and the best of them.

On CPU by csrc/, elsewhere and without it in torch.
"""

import torch

from vllm_dllm.ops.extension import addresses, load_for


def quota(
    masked: torch.Tensor, length: torch.Tensor, step: torch.Tensor, steps: torch.Tensor
) -> torch.Tensor:
    """Number of positions that a step must decide, at most all masked ones.

    A block of B positions in s steps: B div s in each, one more in the first B mod s.
    Past the last step all of them.

    Args:
        masked: [n, block] bool.
        length, step, steps: [n] int64; `steps` at least 1.

    Returns:
        [n] int64 tensor.
    """
    native = load_for(masked)
    if native is None or not masked.is_contiguous():
        return quota_torch(masked, length, step, steps)
    found = torch.empty_like(step)
    tensors = masked, length, step, steps, found
    native.quota(*masked.shape, *addresses(*tensors))
    return found


def quota_torch(
    masked: torch.Tensor, length: torch.Tensor, step: torch.Tensor, steps: torch.Tensor
) -> torch.Tensor:
    """`quota` in torch operations."""
    count = masked.sum(dim=1)
    share = length // steps + (step < length % steps)
    return torch.where(step < steps, torch.minimum(share, count), count)


def best(
    score: torch.Tensor,
    among: torch.Tensor,
    count: torch.Tensor,
    above: torch.Tensor | None = None,
) -> torch.Tensor:
    """The `count[i]` positions of row i with the highest score, or more: as many as
    score higher than `above[i]`.

    Ties go to the lower position, on every device.

    Args:
        score: [n, block] float tensor.
        among: [n, block] bool tensor: positions that may be chosen.
        count: [n] int64 tensor, at most the number of `among` in its row.
        above: [n] float32 tensor; None: no more than that.

    Returns:
        [n, block] bool tensor.
    """
    native = load_for(score)
    is_plain = score.is_contiguous() and among.is_contiguous()
    if native is None or score.dtype is not torch.float32 or not is_plain:
        return best_torch(score, among, count, above)
    chosen = torch.empty_like(among)
    least = 0 if above is None else above.data_ptr()
    native.best(*score.shape, least, *addresses(score, among, count, chosen))
    return chosen


def best_of_quota(
    score: torch.Tensor,
    masked: torch.Tensor,
    length: torch.Tensor,
    step: torch.Tensor,
    steps: torch.Tensor,
    above: torch.Tensor | None = None,
) -> torch.Tensor:
    """`best` of the masked positions, as many as `quota` says.

    Args:
        score, above: as in `best`.
        masked, length, step, steps: as in `quota`.
    """
    native = load_for(score)
    is_plain = score.is_contiguous() and masked.is_contiguous()
    if native is None or score.dtype is not torch.float32 or not is_plain:
        return best_torch(
            score, masked, quota_torch(masked, length, step, steps), above
        )
    chosen = torch.empty_like(masked)
    least = 0 if above is None else above.data_ptr()
    tensors = score, masked, length, step, steps, chosen
    native.best_of_quota(*score.shape, least, *addresses(*tensors))
    return chosen


def best_torch(
    score: torch.Tensor,
    among: torch.Tensor,
    count: torch.Tensor,
    above: torch.Tensor | None = None,
) -> torch.Tensor:
    """`best` in torch operations."""
    if above is not None:
        higher = among & (score > above.unsqueeze(1))
        count = torch.maximum(higher.sum(dim=1), count)
    # Below every score, one that overflowed included.
    score = score.clamp(min=torch.finfo(score.dtype).min)
    score = score.masked_fill(~among, float("-inf"))
    order = score.sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return rank < count.unsqueeze(1)
