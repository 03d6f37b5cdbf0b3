"""Dream's `diffusion_generate` and Fast-dLLM's blockwise one: greedy, one prompt.

Row i of the logits predicts position i + 1. Differences from the authors' scripts: the
mask id is never a candidate, decoding ends with the last mask, lengths need not divide
one another, and the last of a block's forwards decodes all of it also when it is the
first (theirs would leave masks). Fast-dLLM's measures confidence by entropy whatever it
is told; here `algorithm` says how.
"""

from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor, nn

from tests.reference.llada_generate import new_cache, span

ALGORITHMS = ("maskgit_plus", "topk_margin", "entropy")


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    *,
    mask_id: int,
    algorithm: str,
    steps: int,
    eps: float = 1e-3,
    suffix: Sequence[int] = (),
    given: Sequence[int] = (),
) -> tuple[list[int], int]:
    """Decode the whole canvas at once, in `steps` forwards.

    Args:
        model: maps ids [length] to logits.
        algorithm: one of `ALGORITHMS`, the measure of confidence.
        eps: the last of the equal times; fixes how many tokens a step decodes.
        suffix: known tokens that follow the answer.
        given: what follows the prompt instead, an input that holds masks (-1); the
            answer ends with the last of them.

    Returns:
        tokens, and the forwards.
    """
    canvas, masked = new_canvas(prompt, mask_id, gen_length, suffix, given)
    times = torch.linspace(1, eps, steps + 1)
    forwards = 0
    for step in range(steps):
        rows = masked.nonzero()[:, 0]
        if len(rows) == 0:
            break
        logits = shifted(model(canvas))
        forwards += 1
        token, confidence = candidates(logits[rows], mask_id, algorithm)
        order = confidence.argsort(descending=True, stable=True)
        taken = order[: tokens_of_step(len(rows), times, step)]
        canvas[rows[taken]] = token[taken]
        masked[rows[taken]] = False
    return canvas[len(prompt) :][:gen_length].tolist(), forwards


@torch.no_grad()
def generate_blockwise(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    *,
    mask_id: int,
    cache: str,
    algorithm: str = "maskgit_plus",
    threshold: float | None = None,
    steps: int | None = None,
    eps: float = 1e-3,
    suffix: Sequence[int] = (),
    given: Sequence[int] = (),
) -> tuple[list[int], int]:
    """Decode block after block, with stale keys and values outside the block.

    A block's first forward is of the whole canvas and decodes the block's first token,
    which no later forward predicts: that would take the row before the block.

    Args:
        model: maps ids [length], their first position and a `Cache` to logits.
        cache: "prefix" or "dual", as in `llada_generate`.
        algorithm: one of `ALGORITHMS`, the measure of confidence.
        threshold: decode candidates that are at least so sure, and the surest one in
            any case; None for as many as Dream's times say.
        steps: forwards for all blocks together, with Dream's times; None for as many
            as there are tokens.
        suffix: known tokens that follow the answer, whose last block ends with it.
        given: as in `generate`. A block without masks takes one forward.

    Returns:
        tokens, and the forwards.
    """
    assert cache in ("prefix", "dual")
    blocks = -(-gen_length // block_length)
    length = gen_length if suffix or given else blocks * block_length
    canvas, masked = new_canvas(prompt, mask_id, length, suffix, given)
    block_steps = max(1, (steps or blocks * block_length) // blocks)
    times = torch.linspace(1, eps, block_steps + 1)
    store = new_cache(model, len(canvas), cache)
    forwards = 0
    stop = len(prompt) + length
    for start in range(len(prompt), stop, block_length):
        end = min(start + block_length, stop)
        forwards += not masked[start:end].any()
        for step in count():
            rows = masked[start:end].nonzero()[:, 0] + start
            if len(rows) == 0:
                break
            first, last = span(cache, step, start, end, len(canvas))
            logits = shifted(model(canvas[first:last], first, store))
            forwards += 1
            token, confidence = candidates(logits[rows - first], mask_id, algorithm)
            order = confidence.argsort(descending=True, stable=True)
            if step == 0:
                order, number = torch.tensor([0]), int(rows[0] == start)
            elif threshold is not None:
                number = max(1, int((confidence >= threshold).sum()))
            else:
                number = tokens_of_step(len(rows), times, step)
            taken = order[:number]
            canvas[rows[taken]] = token[taken]
            masked[rows[taken]] = False
    return canvas[len(prompt) :][:gen_length].tolist(), forwards


def new_canvas(
    prompt: list[int],
    mask_id: int,
    length: int,
    suffix: Sequence[int],
    given: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Token ids with `length` masks between prompt and suffix, or those of what is
    given, and which they are."""
    behind = given or [*[-1] * length, *suffix]
    masked = torch.tensor([False] * len(prompt) + [token < 0 for token in behind])
    canvas = torch.tensor([*prompt, *behind]).masked_fill(masked, mask_id)
    return canvas, masked


def shifted(logits: Tensor) -> Tensor:
    """Give row i what predicts position i; nothing predicts the first, row 0 stays."""
    return torch.cat((logits[:1], logits[:-1]))


def candidates(logits: Tensor, mask_id: int, algorithm: str) -> tuple[Tensor, Tensor]:
    """Every row's best token that is not the mask, and how sure it is.

    logits: [rows, vocab] float32 -> [rows] both.
    """
    assert algorithm in ALGORITHMS
    logits[:, mask_id] = -torch.inf
    probabilities = logits.softmax(-1)
    best, token = probabilities.max(-1)
    if algorithm == "topk_margin":
        first, second = probabilities.topk(2, -1).values.unbind(-1)
        return token, first - second
    if algorithm == "entropy":
        return token, (probabilities * (probabilities + 1e-10).log()).sum(-1)
    return token, best


def tokens_of_step(masks: int, times: Tensor, step: int) -> int:
    """How many of `masks` positions a step decodes.

    In float32, as the authors': rounding decides between one token and none.
    """
    if step >= len(times) - 2:
        return masks
    return int(torch.tensor(masks).float() * (1 - times[step + 1] / times[step]))
