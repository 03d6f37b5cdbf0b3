"""LLaDA2.0's `generate`: greedy, uncached, one prompt at a time."""

import torch
from torch import Tensor, nn

from tests.reference.llada2_moe import LLaDA2Moe
from tests.reference.masks import block_causal


def schedule(count: int, steps: int) -> list[int]:
    """Split `count` tokens over `steps`; the first `count % steps` get one more."""
    base, more = divmod(count, steps)
    return [base + (step < more) for step in range(steps)]


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    steps: int,
    threshold: float,
    mask_id: int,
    eos_id: int,
) -> tuple[list[int], int]:
    """Decode blocks of the absolute grid until one holds EOS.

    Args:
        model: maps ids [1, length] and a bool mask [length, length] to logits.
        prompt: its tail shares the first decoded block, as fixed tokens.
        steps: forwards allowed per block; their quotas are those of a full block.
        threshold: a candidate is taken when its probability is strictly greater.

    Returns:
        tokens up to and including the first EOS (else `gen_length`), and the forwards.
    """
    start = len(prompt)
    blocks = -(-(start + gen_length) // block_length)
    canvas = torch.full((1, blocks * block_length), mask_id)
    canvas[0, :start] = torch.tensor(prompt)
    allowed = block_causal(canvas.shape[1], block_length)
    quotas = schedule(block_length, min(steps, gen_length))
    forwards = 0
    for block in range(start // block_length, blocks):
        end = (block + 1) * block_length
        # A prompt may hold mask ids of its own; only generated positions are decoded.
        first = max(start, end - block_length)
        for quota in quotas:
            masked = canvas[0, first:end] == mask_id
            if not masked.any():
                break
            logits = model(canvas[:, :end], allowed[:end, :end])[0, first:]
            forwards += 1
            accept_step(canvas[0, first:end], masked, logits, quota, threshold, mask_id)
        if (canvas[0, start:end] == eos_id).any():
            break
    tokens = canvas[0, start : start + gen_length].tolist()
    if eos_id in tokens:
        tokens = tokens[: tokens.index(eos_id) + 1]
    return tokens, forwards


def accept_step(
    window: Tensor,
    masked: Tensor,
    logits: Tensor,
    quota: int,
    threshold: float,
    mask_id: int,
) -> None:
    """Write this step's tokens into `window`.

    Args:
        window: [rows] int64, changed in place.
        masked: [rows] bool, the rows still to decode.
        logits: [rows, vocab] float32; the mask id is never a candidate.
    """
    logits[:, mask_id] = -torch.inf
    confidence, token = logits.softmax(-1).max(-1)
    confidence = confidence.masked_fill(~masked, -torch.inf)
    accepted = confidence > threshold
    if accepted.sum() < quota:
        best = confidence.topk(min(quota, int(masked.sum()))).indices
        accepted = torch.zeros_like(masked).index_fill(0, best, True)
    window[accepted] = token[accepted]


class Still:
    """A reference model that predicts no token that moves others (LLaDA2.2)."""

    def __init__(self, model: LLaDA2Moe) -> None:
        self.model = model
        extra = model.config.extra
        names = ("delete_token_id", "split_token_id")
        self.moves = [extra[name] for name in names if name in extra]

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits = self.model(ids, mask)
        logits[..., self.moves] = -torch.inf
        return logits
