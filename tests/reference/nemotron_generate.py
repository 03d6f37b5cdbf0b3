"""Nemotron-Labs-Diffusion's `generate` with a causal context: greedy, uncached.

Differences from the authors' code: the mask id is never a candidate, and the answer is
as long as it is asked to be.
"""

import torch
from torch import Tensor

from tests.reference.nemotron import Nemotron
from tests.reference.sdar_generate import candidates


def causal_but_for(start: int, length: int) -> Tensor:
    """[length, length] bool: the positions from `start` on see each other as well."""
    index = torch.arange(length)
    return (index[None, :] <= index[:, None]) | (index[:, None] >= start)


@torch.no_grad()
def generate(
    model: Nemotron,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    threshold: float | None,
    mask_id: int,
    eos_id: int,
    steps: int | None = None,
) -> tuple[list[int], int]:
    """Decode up to `gen_length` tokens, and no further than the first `eos_id`.

    Args:
        threshold: a candidate is taken when its probability is at least that; None: a
            quota in each of the `steps` of a block.

    Returns:
        tokens, and the forwards of a cached implementation: one for what is known at
        the start of each block, and one for each step.
    """
    sequence, forwards = list(prompt), 0
    while True:
        start, end = len(sequence), len(sequence) + block_length
        causal = causal_but_for(start, start)
        _, token = candidates(model(torch.tensor(sequence), causal), mask_id)
        sequence += [token[-1], *[mask_id] * (block_length - 1)]
        open_positions = list(range(start + 1, end))
        forwards += 1
        count, most = len(open_positions), steps or block_length
        for step in range(block_length + 1):
            known = min([*open_positions, end])
            answer = sequence[len(prompt) : known][:gen_length]
            if eos_id in answer:
                return answer[: answer.index(eos_id) + 1], forwards
            if len(answer) == gen_length:
                return answer, forwards
            if not open_positions:
                break
            visible = causal_but_for(start, end)
            logits = model(torch.tensor(sequence), visible)
            confidence, token = candidates(logits, mask_id)
            forwards += 1
            surest_first = sorted(
                open_positions, key=lambda p: confidence[p], reverse=True
            )
            quota = (
                1 if threshold is not None else count // most + (step < count % most)
            )
            for number, position in enumerate(surest_first):
                sure = threshold is not None and confidence[position] >= threshold
                if number < quota or sure:
                    sequence[position] = token[position]
                    open_positions.remove(position)
