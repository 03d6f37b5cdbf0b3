"""AdaBlock-dLLM's generators for LLaDA and Dream: greedy, one prompt at a time.

Differences from the authors' scripts: the mask id is never a candidate, Dream has a
"prefix" cache too, as Fast-dLLM's, and text may follow the answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.reference.dream import Dream
from tests.reference.dream_generate import shifted
from tests.reference.llada_generate import new_cache, span
from tests.reference.llada_moe import LLaDAMoE


class Answer(NamedTuple):
    tokens: list[int]
    forwards: int
    blocks: list[int]
    """Lengths of the blocks that were chosen."""


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    *,
    mask_id: int,
    threshold: float,
    cache: str,
    delimiter_ids: Sequence[int] = (),
    delimiter_threshold: float | None = None,
    suffix: Sequence[int] = (),
) -> Answer:
    """Decode blocks that end with the surest delimiter of their first forward.

    Args:
        model: maps ids [length], their first position and a `Cache` to logits.
        block_length: of a block without a delimiter that is sure enough.
        threshold: decode candidates that are at least so probable, and the best one in
            any case.
        cache: "none", "prefix" or "dual", as in `llada_generate`.
        delimiter_threshold: None for blocks of the default length.
        suffix: known tokens that follow the answer.
    """
    shifts = isinstance(model, Dream) and not isinstance(model, LLaDAMoE)
    canvas = torch.tensor([*prompt, *[mask_id] * gen_length, *suffix])
    stop = len(prompt) + gen_length
    masked = torch.zeros(len(canvas), dtype=torch.bool)
    masked[len(prompt) : stop] = True
    store = new_cache(model, len(canvas), cache)
    start, forwards, blocks = len(prompt), 0, []
    while start < stop:
        step, end = 0, stop
        while step == 0 or masked[start:end].any():
            first, last = span(cache, step, start, end, len(canvas))
            logits = model(canvas[first:last], first, store)
            logits = shifted(logits) if shifts else logits
            logits[:, mask_id] = -torch.inf
            forwards += 1
            if step == 0:
                searched = min(start + int(0.25 * gen_length), stop) - first
                rows_searched = logits[start - first : searched]
                found = found_length(rows_searched, delimiter_ids, delimiter_threshold)
                end = start + (found or min(block_length, stop - start))
                blocks.append(end - start)
            rows = masked[start:end].nonzero()[:, 0] + start
            token, confidence = candidates(logits[rows - first], shifts)
            taken = confidence >= threshold
            taken[confidence.argmax()] = True
            if shifts and cache != "none" and step == 0:
                taken = rows == start
            canvas[rows[taken]] = token[taken]
            masked[rows[taken]] = False
            step += 1
        start = end
    return Answer(canvas[len(prompt) : stop].tolist(), forwards, blocks)


def found_length(
    logits: Tensor, delimiter_ids: Sequence[int], delimiter_threshold: float | None
) -> int | None:
    """Length of a block that ends with its surest delimiter; None without one.

    logits: [positions, vocab] of the positions that are searched.
    """
    if delimiter_threshold is None:
        return None
    surest, length = -1.0, None
    for offset, row in enumerate(logits):
        token = int(row.argmax())
        probability = float((row[token] - row.logsumexp(-1)).exp())
        if token in delimiter_ids and probability > surest:
            surest, length = probability, offset + 1
    return length if surest >= delimiter_threshold else None


def candidates(logits: Tensor, in_float32: bool) -> tuple[Tensor, Tensor]:
    """Every row's best token and its probability, as precise as the authors' own."""
    probabilities = (logits if in_float32 else logits.double()).softmax(-1)
    confidence, token = probabilities.max(-1)
    return token, confidence
