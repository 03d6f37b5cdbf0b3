"""WeDLM's decoding in a sliding window: greedy, uncached, one prompt at a time.

The authors' engine reorders its inputs: of a window, filled slots go before masks, and
attention is causal in that order. Here every slot stays at its position, and the order
is one of the mask.

Differences from the authors' engine: the mask id is never a candidate; positions from
`max_len` on are no part of the window.
"""

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    mask_id: int,
    window: int = 16,
    entropy_threshold: float | None = 0.4,
    pos_penalty_factor: float = 0.02,
    stop_id: int | None = None,
    max_len: int | None = None,
) -> tuple[list[int], int]:
    """Decode until `gen_length` tokens or `stop_id` have left the window.

    Args:
        model: maps ids [length] and a bool mask [length, length] to logits.
        entropy_threshold: None fills one slot per step.

    Returns:
        tokens, and the forwards after that of the prompt; the last one decides nothing.
    """
    left: list[int] = []
    slots: list[int | None] = [None] * window
    forwards = 0
    while True:
        run = next((i for i, token in enumerate(slots) if token is None), len(slots))
        slots += [None] * run
        first = len(prompt) + len(left)
        if max_len is not None:
            slots = slots[: max_len - first]
        logits = model(*inputs(prompt + left, slots, mask_id))[first:]
        forwards += 1
        for token in slots[:run]:
            assert token is not None
            left.append(token)
            if token == stop_id or len(left) == gen_length:
                return left, forwards
        masks = [i for i, token in enumerate(slots) if token is None]
        logits[:, mask_id] = -torch.inf
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1).tolist()
        score = [entropy[i] + pos_penalty_factor * (i - masks[0]) for i in masks]
        bound = -1.0 if entropy_threshold is None else entropy_threshold
        chosen = [i for i, value in zip(masks, score, strict=True) if value < bound]
        for i in chosen or [masks[score.index(min(score))]]:
            slots[i] = int(logits[i].argmax())
        slots = slots[run:]


def inputs(
    known: list[int], slots: list[int | None], mask_id: int
) -> tuple[Tensor, Tensor]:
    """Ids [length] and a bool mask [length, length] of a step."""
    sequence = [*known, *(mask_id if token is None else token for token in slots)]
    is_mask = [False] * len(known) + [token is None for token in slots]
    order = sorted(range(len(sequence)), key=lambda place: (is_mask[place], place))
    place = torch.tensor(order).argsort()
    return torch.tensor(sequence), place[None, :] <= place[:, None]
