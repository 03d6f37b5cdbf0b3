"""LLaDA's `generate` and Fast-dLLM's three: greedy, one prompt at a time.

Differences from the authors' scripts: the mask id is never a candidate, a block is left
as soon as it is decoded (Fast-dLLM's cached loops forward a decoded block once more),
probabilities are float64 throughout, and lengths need not divide one another.
"""

from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor, nn

from tests.reference.kv_cache import Cache
from tests.reference.llada2_generate import schedule

CACHES = ("none", "prefix", "dual")


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    *,
    mask_id: int,
    steps: int | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    entropy_threshold: float | None = None,
    cache: str = "none",
    cfg_scale: float = 0.0,
    eos_id: int | None = None,
    eot_id: int | None = None,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    suffix: Sequence[int] = (),
    given: Sequence[int] = (),
) -> tuple[list[int], int]:
    """Decode `gen_length` tokens in blocks that count from the prompt's end.

    Args:
        model: maps ids [length], their first position and a `Cache` to logits.
        steps: forwards for all blocks together, each block's share of which fixes how
            many tokens a forward decodes; None for one token each.
        threshold: instead of that, decode candidates that are at least so probable,
            and the best one in any case.
        factor: instead of that, decode more candidates the surer they are.
        entropy_threshold: instead of that, decode candidates of positions with at most
            that entropy, and of the one with the lowest in any case (d3LLM).
        cache: one of `CACHES`. With a cache, a block's first forward is of the whole
            canvas, the others are of its rows and all to their right ("prefix") or of
            its rows alone ("dual"); keys of other rows stay as the first made them.
        cfg_scale: for a second forward, with masks for the prompt.
        logits_eos_inf: `eos_id` is no candidate.
        confidence_eos_eot_inf: `eos_id` and `eot_id` are candidates of no confidence.
        suffix: known tokens that follow the answer, whose last block ends with it.
        given: what follows the prompt instead, an input that holds masks (-1); the
            answer ends with the last of them. A block without any takes one forward.

    Returns:
        tokens, and the forwards (those with masks for the prompt included).
    """
    blocks = -(-gen_length // block_length)
    exact = bool(suffix or given)
    stop = len(prompt) + (gen_length if exact else blocks * block_length)
    suffix = given[gen_length:] if given else suffix
    length = stop + len(suffix)
    canvas = torch.full((length,), mask_id)
    canvas[: len(prompt)] = torch.tensor(prompt)
    canvas[stop:] = torch.tensor(suffix)
    # A prompt may hold mask ids of its own; only generated positions are decoded.
    masked = (torch.arange(length) >= len(prompt)) & (torch.arange(length) < stop)
    for position, token in enumerate(given[:gen_length], len(prompt)):
        if token >= 0:
            canvas[position], masked[position] = token, False
    known = ~masked
    block_steps = max(1, (steps or blocks * block_length) // blocks)
    caches = [new_cache(model, length, cache) for _ in range(2 if cfg_scale else 1)]
    banned = [mask_id, eos_id] if logits_eos_inf else [mask_id]
    unsure = [eos_id, eot_id] if confidence_eos_eot_inf else []
    forwards = 0
    for start in range(len(prompt), stop, block_length):
        end = min(start + block_length, stop)
        quotas = schedule(int(masked[start:end].sum()), block_steps)
        forwards += 0 if masked[start:end].any() else len(caches)
        for step in count():
            rows = masked[start:end].nonzero()[:, 0] + start
            if len(rows) == 0:
                break
            first, last = span(cache, step, start, end, length)
            logits = model(canvas[first:last], first, caches[0])
            if cfg_scale:
                blind = canvas.clone()
                blind[known] = mask_id
                prior = model(blind[first:last], first, caches[1])
                logits = prior + (cfg_scale + 1) * (logits - prior)
            forwards += len(caches)
            token, confidence = candidates(logits[rows - first], banned, unsure)
            if entropy_threshold is not None:
                allowed = logits[rows - first]
                allowed[:, banned] = -torch.inf
                chances = allowed.double().softmax(-1)
                confidence = (chances * (chances + 1e-12).log()).sum(-1)
            order = confidence.argsort(descending=True, stable=True)
            surest = confidence[order].tolist()
            if factor is not None:
                number = accept_by_factor(surest, factor)
            elif entropy_threshold is not None:
                number = max(1, sum(-value <= entropy_threshold for value in surest))
            elif threshold is not None:
                number = max(1, sum(value >= threshold for value in surest))
            else:
                number = quotas[step]
            taken = order[:number]
            canvas[rows[taken]] = token[taken]
            masked[rows[taken]] = False
    return canvas[len(prompt) :][:gen_length].tolist(), forwards


def new_cache(model: nn.Module, length: int, kind: str) -> Cache | None:
    """An empty cache for a canvas of that length; None for a decoder without one."""
    assert kind in CACHES
    config = vars(model.config)
    layers = config.get("n_layers") or config["num_hidden_layers"]
    return None if kind == "none" else Cache(layers, length)


def span(kind: str, step: int, start: int, end: int, length: int) -> tuple[int, int]:
    """First and last position (exclusive) that a step of a block forwards."""
    if kind == "none" or step == 0:
        return 0, length
    return (start, length) if kind == "prefix" else (start, end)


def candidates(
    logits: Tensor, banned: list[int], unsure: list[int]
) -> tuple[Tensor, Tensor]:
    """Every row's best token that is not banned, and its probability (float64).

    logits: [rows, vocab] -> [rows] both; `unsure` tokens have no probability.
    """
    logits[:, banned] = -torch.inf
    token = logits.argmax(-1)
    logits[:, unsure] = -torch.inf
    probabilities = logits.double().softmax(-1)
    return token, probabilities.gather(-1, token[:, None])[:, 0]


def accept_by_factor(surest: list[float], factor: float) -> int:
    """How many of the surest candidates are decoded; `surest` is in falling order.

    Fast-dLLM looks for the first one below its threshold, and takes those before it;
    the last one is taken along when it is the first to fail.
    """
    last = len(surest) - 1
    failing = last
    for index, value in enumerate(surest):
        if index and value < 1 - factor / (index + 2):
            failing = index
            break
    return failing + 1 if failing == last else failing
