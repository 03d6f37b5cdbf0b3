"""SDAR's `block_diffusion_generate`: greedy, uncached, one prompt at a time.

Differences from the authors' script: the mask id is never a candidate, and a step that
is to take more tokens than there are masks takes all masks (theirs overwrites tokens
that were already there).
"""

import torch
from torch import Tensor, nn

from tests.reference.masks import block_causal

ALGORITHMS = ("low_confidence_dynamic", "low_confidence_static", "sequential")


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    steps: int,
    algorithm: str,
    mask_id: int,
    threshold: float = 1.0,
) -> tuple[list[int], int]:
    """Decode `gen_length` tokens in blocks of the absolute grid, past any EOS.

    Args:
        model: maps ids [length] and a bool mask [length, length] to logits.
        prompt: its tail shares the first decoded block, as fixed tokens.
        steps: forwards allowed per block; their quotas are those of a full block.
        algorithm: one of `ALGORITHMS`.
        threshold: for `low_confidence_dynamic`; a candidate is taken when its
            probability is strictly greater.

    Returns:
        tokens, and the forwards a cached implementation needs: one for the whole
        blocks of the prompt, and for each block its steps and one to store it.
    """
    start = len(prompt)
    blocks = -(-(start + gen_length) // block_length)
    sequence = prompt + [mask_id] * (blocks * block_length - start)
    # A prompt may hold mask ids of its own; only generated positions are decoded.
    masked = [position >= start for position in range(len(sequence))]
    allowed = block_causal(len(sequence), block_length)
    forwards = int(start >= block_length)
    for block in range(start // block_length, blocks):
        end = (block + 1) * block_length
        for step in range(steps):
            open_positions = [
                position
                for position in range(end - block_length, end)
                if masked[position]
            ]
            if not open_positions:
                break
            logits = model(torch.tensor(sequence[:end]), allowed[:end, :end])
            forwards += 1
            confidence, token = candidates(logits, mask_id)
            quota = block_length // steps + (step < block_length % steps)
            for position in accept(
                open_positions, confidence, quota, algorithm, threshold
            ):
                sequence[position] = token[position]
                masked[position] = False
        forwards += 1
    return sequence[start : start + gen_length], forwards


def candidates(logits: Tensor, mask_id: int) -> tuple[list[float], list[int]]:
    """The probability and the id of every row's best token that is not the mask."""
    logits[:, mask_id] = -torch.inf
    confidence, token = logits.softmax(-1).max(-1)
    return confidence.tolist(), token.tolist()


def accept(
    open_positions: list[int],
    confidence: list[float],
    quota: int,
    algorithm: str,
    threshold: float,
) -> list[int]:
    """Those of `open_positions` whose candidates become tokens in this step."""
    if algorithm == "sequential":
        return open_positions[:quota]
    surest_first = sorted(open_positions, key=lambda p: confidence[p], reverse=True)
    above = [p for p in surest_first if confidence[p] > threshold]
    if algorithm == "low_confidence_dynamic" and len(above) >= quota:
        return above
    return surest_first[:quota]
