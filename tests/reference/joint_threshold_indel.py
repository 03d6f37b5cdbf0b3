"""LLaDA2.2's rule that deletes and inserts: greedy, one prompt, plain loops.

After its published description, on SGLang's schedule: lists and sets, no tensors but
the model's. `Block` takes the steps of one block; `generate` decodes an answer.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from tests.reference.masks import block_causal

Ranking = Sequence[tuple[int, float]]
"""Of a position: tokens with their probabilities, the likeliest first, no mask."""


def rebuilt(
    old: list[int], written: dict[int, int], first: int, delete: int, split: int
) -> list[int | None]:
    """Where the content of each position of a block comes from; None is a new mask.

    Args:
        old: the block before the step.
        written: a token for each position that the step writes.
        first: the positions before it are of the prompt.
    """
    sources: list[int | None] = [*range(first)]
    for position in range(first, len(old)):
        token = written.get(position)
        if token == split:
            sources += [None, position]
        elif token != delete:
            sources.append(position)
    sources += [None] * len(old)
    return sources[: len(old)]


@dataclass
class Block:
    """One block under denoising."""

    tokens: list[int]
    first: int
    """Number of tokens of the prompt in it."""
    mask: int
    delete: int
    split: int
    threshold: float
    edit_threshold: float
    max_post_steps: int
    original: list[bool] = field(default_factory=list)
    post_steps: int = 0
    steps: int = 0
    seen: set[tuple[int, ...]] = field(default_factory=set)
    tried: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    done: bool = False
    unconfirmed: bool = False
    """Whether the last step wrote something, so that a forward more makes its KV."""

    def __post_init__(self) -> None:
        self.original = [
            i >= self.first and token == self.mask
            for i, token in enumerate(self.tokens)
        ]

    def step(self, ranking: Sequence[Ranking]) -> None:
        """ranking: of each position; not read where the prompt is."""
        places = range(self.first, len(self.tokens))
        best = {i: ranking[i][0][0] for i in places}
        sure = {i: ranking[i][0][1] for i in places}
        masks = [i for i in places if self.tokens[i] == self.mask]
        original = [i for i in masks if self.original[i]]
        self.steps += 1
        self.post_steps += not original
        limit = self.max_post_steps
        final = self.post_steps >= limit > 0 or (limit == 0 and not original)
        final = final or self.steps > len(self.tokens) + limit

        taken = set(masks)
        if original and not final:
            needed = 1 + len(masks) - len(original)
            taken = {i for i in masks if sure[i] > self.threshold}
            if len(taken) < needed:
                order = sorted(masks, key=lambda i: (-sure[i], i))
                taken = set(order[:needed])
            if limit == 0 and taken.issuperset(original):
                final, taken = True, set(masks)
        edited = {
            i
            for i in places
            if i not in masks
            and best[i] != self.tokens[i]
            and sure[i] > self.edit_threshold
        }
        write = sorted(taken | edited)
        if not write:
            self.done, self.unconfirmed = True, False
            return
        moves = {self.delete, self.split}
        if final:
            for i in write:
                best[i] = next(t for t, _ in ranking[i] if t not in moves)
        key = tuple(self.tokens)
        changed = [i for i in write if best[i] != self.tokens[i]]
        if key in self.seen and not final and changed:
            i = min(changed, key=lambda i: (sure[i], i))
            best[i] = next(t for t, _ in ranking[i] if t not in self.tried[i])
        self.seen.add(key)
        for i in write:
            self.tried[i].add(best[i])
        self.unconfirmed = any(best[i] != self.tokens[i] for i in write)
        self._write({i: best[i] for i in write})
        self.done = final

    def _write(self, written: dict[int, int]) -> None:
        old, was_original = self.tokens, self.original
        sources = rebuilt(old, written, self.first, self.delete, self.split)
        kept = {
            i: token
            for i, token in written.items()
            if token not in (self.delete, self.split)
        }
        self.tokens = [self.mask if i is None else kept.get(i, old[i]) for i in sources]
        self.original = [i is not None and was_original[i] for i in sources]


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    *,
    mask_id: int,
    eos_id: int,
    threshold: float,
    edit_threshold: float,
    max_post_steps: int,
) -> tuple[list[int], int]:
    """Tokens up to and including the first EOS (else `gen_length`), and forwards."""
    moves = model.config.extra["delete_token_id"], model.config.extra["split_token_id"]
    known, forwards = list(prompt), 0
    end = len(prompt) + gen_length
    while len(known) < end and eos_id not in known[len(prompt) :]:
        start = len(known) // block_length * block_length
        tail = known[start:]
        block = Block(
            tail + [mask_id] * (block_length - len(tail)),
            len(tail),
            mask_id,
            *moves,
            threshold,
            edit_threshold,
            max_post_steps,
        )
        while not block.done:
            ids = torch.tensor([known[:start] + block.tokens])
            mask = block_causal(ids.shape[1], block_length)
            logits = model(ids, mask)[0, start:]
            logits[:, mask_id] = -torch.inf
            probs, order = logits.softmax(-1).sort(stable=True, dim=-1, descending=True)
            block.step(
                [
                    list(zip(tokens, values, strict=True))
                    for tokens, values in zip(
                        order.tolist(), probs.tolist(), strict=True
                    )
                ]
            )
            forwards += 1
        forwards += block.unconfirmed
        known = known[:start] + block.tokens
    tokens = known[len(prompt) : end]
    if eos_id in tokens:
        tokens = tokens[: tokens.index(eos_id) + 1]
    return tokens, forwards
