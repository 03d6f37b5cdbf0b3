"""Structured output in runs, plainly: one request, full recompute, no grammar engine.

An answer is a fixed number of words and the end. Each word is one token, and what may
stand at a position is a list of them, whatever stands before it.
"""

from collections.abc import Callable

import torch

Predict = Callable[[list[int], int], torch.Tensor]
"""Known tokens and the end of the canvas -> [canvas, vocab] logits of the masks between
them."""


def answer(
    predict: Predict,
    prompt: list[int],
    words: list[list[int]],
    end_token: int,
    mask: int,
    block_end: Callable[[int], int],
    is_sure: Callable[[float], bool],
) -> tuple[list[int], int]:
    """Tokens and forwards.

    Args:
        block_end: end of the block that holds a position.
        is_sure: whether a probability is enough to write more than has to be.
    """
    allowed = [*words, [end_token]]
    known, candidates, forwards = list(prompt), list[int](), 0
    while known[-1] != end_token or len(known) == len(prompt):
        begin, end = len(known), block_end(len(known))
        left = allowed[begin - len(prompt) :][: end - begin]
        run = assumed(left, candidates, end_token)
        forced = 0
        while forced < len(run) and len(left[forced]) == 1:
            forced += 1
        logits = predict(known + run[:forced], end)
        logits = torch.cat([torch.zeros(forced, logits.shape[1]), logits])
        forwards += 1
        logits[:, mask] = -torch.inf
        for ahead, some in enumerate(left[: len(run) + 1]):
            others = torch.ones(logits.shape[1], dtype=torch.bool)
            others[some] = False
            logits[ahead, others] = -torch.inf
        candidates = logits.argmax(dim=1).tolist()
        choices, sure = 0, True
        for ahead, some in enumerate(left[: len(run) + 1]):
            if len(some) > 1:
                share = logits[ahead].softmax(dim=0).max()
                sure &= is_sure(float(share))
                if choices and not sure:
                    break
                choices += 1
            known.append(candidates[ahead])
            if ahead == len(run) or candidates[ahead] != run[ahead]:
                break
        candidates = candidates[len(known) - begin :]
    return known[len(prompt) :], forwards


def assumed(left: list[list[int]], candidates: list[int], end_token: int) -> list[int]:
    """What is assumed of the positions to come."""
    run: list[int] = []
    for ahead, some in enumerate(left):
        guess = [*some[:1], *candidates[ahead : ahead + 1]][-1]
        token = some[0] if len(some) == 1 else guess
        has_guess = len(some) == 1 or ahead < len(candidates)
        if not has_guess or token not in some or token == end_token:
            break
        run.append(token)
    return run
