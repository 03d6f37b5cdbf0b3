"""d3LLM's `generate_multi_block` for LLaDA and Dream: greedy, one prompt at a time.

No cache, as there, and no early stop. Differences from the authors' scripts: the mask
id is never a candidate, the last block may be shorter than the others, and text may
follow the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.reference.dream import Dream
from tests.reference.dream_generate import shifted
from tests.reference.llada_moe import LLaDAMoE


@dataclass
class Block:
    start: int
    end: int
    masks: int

    @property
    def progress(self) -> float:
        return 1 - self.masks / (self.end - self.start)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    *,
    mask_id: int,
    entropy_threshold: float,
    add_block_threshold: float,
    suffix: Sequence[int] = (),
) -> tuple[list[int], int]:
    """Decode blocks that open one after the other, and go on together.

    Args:
        model: maps ids [length] to logits.
        add_block_threshold: decoded share of the last block from which the next opens.
        suffix: known tokens that follow the answer, whose last block ends with it.

    Returns:
        tokens, and the forwards.
    """
    is_dream = isinstance(model, Dream) and not isinstance(model, LLaDAMoE)
    stop = len(prompt) + gen_length
    if not suffix:
        stop = len(prompt) + -(-gen_length // block_length) * block_length
    canvas = torch.tensor([*prompt, *[mask_id] * (stop - len(prompt)), *suffix])
    masked = torch.zeros(len(canvas), dtype=torch.bool)
    masked[len(prompt) : stop] = True
    blocks = [new_block(len(prompt), block_length, stop)]
    forwards = 0
    while masked.any():
        last = blocks[-1]
        if last.end < stop and (
            last.progress >= add_block_threshold or last.masks == 0
        ):
            blocks.append(new_block(last.end, block_length, stop))
        logits = model(canvas)
        forwards += 1
        logits = (shifted(logits) if is_dream else logits).clone()
        logits[:, mask_id] = -torch.inf
        entropy = entropy_of(logits).masked_fill(~masked, torch.inf)
        entropy[blocks[-1].end :] = torch.inf
        if is_dream:
            taken = entropy < entropy_threshold
        else:
            taken = entropy <= entropy_threshold
            taken[entropy.argmin()] = True
        front = next(block for block in blocks if block.masks)
        if not taken[front.start : front.end].any():
            taken[front.start + entropy[front.start : front.end].argmin()] = True
        canvas[taken] = logits.argmax(-1)[taken]
        masked &= ~taken
        for block in blocks:
            block.masks = int(masked[block.start : block.end].sum())
    return canvas[len(prompt) :][:gen_length].tolist(), forwards


def new_block(start: int, length: int, stop: int) -> Block:
    end = min(start + length, stop)
    return Block(start, end, end - start)


def entropy_of(logits: Tensor) -> Tensor:
    """[rows, vocab] -> [rows] float64, nats."""
    chances = logits.double().softmax(-1)
    return -(chances * (chances + 1e-12).log()).sum(-1)
