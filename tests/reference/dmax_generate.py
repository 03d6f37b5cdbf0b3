"""DMax's decoder, one request at a time: greedy, uncached, one block after the other.

Written from the description of its steps alone, with plain loops. Tokens that a step
found are shown to the next one as mixtures of their embedding and the mask's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SURE = 0.9


@dataclass(frozen=True)
class Model:
    """What reads the sequence; a row sees its own block and those before it."""

    embed: Callable[[Tensor], Tensor]
    """[length] int64 -> [length, hidden]."""
    read: Callable[[Tensor], Tensor]
    """[length, hidden], whole blocks -> logits [length, vocab]."""
    mask_id: int


def mixture(token: Tensor, mask: Tensor, share: float) -> Tensor:
    """`share` of one embedding and the rest of the other, as long as their mean."""
    mixed = share * token + (1 - share) * mask
    length = share * token.norm() + (1 - share) * mask.norm()
    return mixed * length / (mixed.norm() + 1e-6)


@torch.no_grad()
def generate(
    model: Model, prompt: list[int], gen_length: int, block: int, threshold: float
) -> tuple[list[int], int]:
    """`gen_length` tokens, past any end token, and the steps of all blocks."""
    ids, steps, end = list(prompt), 0, len(prompt) + gen_length
    for start in range(len(prompt) // block * block, end, block):
        ids += [model.mask_id] * (start + block - len(ids))
        steps += decode_block(model, ids, max(start, len(prompt)), block, threshold)
    return ids[len(prompt) : end], steps


def decode_block(
    model: Model, ids: list[int], first: int, block: int, threshold: float
) -> int:
    """Decode ids[first:], the last block behind its part of the prompt; its steps."""
    masked = set(range(first, len(ids)))
    share: dict[int, float] = {}
    for step in range(1, block + 1):
        hidden = model.embed(torch.tensor(ids))
        [mask] = model.embed(torch.tensor([model.mask_id]))
        for position, value in share.items():
            hidden[position] = mixture(hidden[position], mask, value)
        logits = model.read(hidden).float()
        logits[:, model.mask_id] = -torch.inf
        confidence, token = logits.softmax(dim=1).max(dim=1)
        before = list(ids)
        for position in accepted(sorted(masked), confidence.tolist(), threshold):
            masked.remove(position)
        decoded = [p for p in range(first, len(ids)) if p not in masked]
        for position in decoded:
            ids[position] = int(token[position])
        share = {position: float(confidence[position]) for position in decoded}
        sure = bool((confidence[first:] >= SURE).all())
        if not masked and (sure or ids == before):
            return step
    return block


def accepted(masked: list[int], confidence: list[float], threshold: float) -> list[int]:
    """The masks that become tokens: from the left as long as they are sure."""
    for count, position in enumerate(masked):
        if confidence[position] < threshold:
            return masked[: max(count, 1)]
    return masked
