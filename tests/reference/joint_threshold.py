"""LLaDA2.1's rule that edits, with full attention: greedy, one prompt, plain loops.

No authors' code has it so. Cached steps are those of `llada_generate` and
`dream_generate`: a position that no row of a step predicts is not written in it.
"""

from itertools import count

import torch
from torch import nn

from tests.reference.dream_generate import shifted
from tests.reference.llada_generate import candidates, new_cache, span


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    *,
    mask_id: int,
    cache: str,
    is_shifted: bool,
    threshold: float,
    edit_threshold: float,
    max_post_steps: int,
) -> list[int]:
    """Decode blocks that count from the prompt's end.

    Args:
        is_shifted: row i of the logits predicts position i + 1, as Dream's.
        threshold: masks that are surer become tokens, and the surest in any case.
        edit_threshold: tokens of the block whose other candidates are surer change.
        max_post_steps: steps without a mask after which a block ends in any case.
    """
    length = len(prompt) + -(-gen_length // block_length) * block_length
    canvas = torch.tensor([*prompt, *[mask_id] * (length - len(prompt))])
    store = new_cache(model, length, cache)
    for start in range(len(prompt), length, block_length):
        masks = set(range(start, start + block_length))
        post_steps = 0
        for step in count():
            first, last = span(cache, step, start, start + block_length, length)
            logits = model(canvas[first:last], first, store)
            logits = shifted(logits) if is_shifted else logits
            seen = list(range(start, start + block_length))
            if is_shifted and cache != "none":
                seen = seen[:1] if step == 0 else seen[1:]
            token, sure = candidates(logits[[i - first for i in seen]], [mask_id], [])
            found = {i: (int(token[n]), float(sure[n])) for n, i in enumerate(seen)}
            post_steps += not masks
            open_masks = [i for i in seen if i in masks]
            written = {i for i in open_masks if found[i][1] > threshold}
            if open_masks:
                written |= {max(open_masks, key=lambda i, of=found: of[i][1])}
            edited = {
                i
                for i in seen
                if i not in masks
                and found[i][1] > edit_threshold
                and found[i][0] != canvas[i]
            }
            settled = not masks and not edited
            for i in written | edited:
                canvas[i] = found[i][0]
            masks -= written
            if settled or (not masks and post_steps >= max_post_steps):
                break
    return canvas[len(prompt) :][:gen_length].tolist()
