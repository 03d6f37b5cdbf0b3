"""D2F, one request at a time: greedy, and every forward from the first position on.

Written from the description of the authors' loop alone. The prompt is one unit, which
sees itself; blocks of the answer follow it, each of which sees what is before it and
itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Forward = Callable[[Tensor, int, "Units"], Tensor]
"""A reference model: ids [length] int64 of a unit, its first position and the units
before it -> logits [length, vocab]."""


@dataclass
class Units:
    """Keys and values of the units so far, by layer."""

    held: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def update(
        self, layer: int, start: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add those of a unit; return all. keys, values: [unit, kv_heads, head_dim]."""
        if layer in self.held:
            before = self.held[layer]
            assert len(before[0]) == start
            keys, values = torch.cat([before[0], keys]), torch.cat([before[1], values])
        self.held[layer] = keys, values
        return keys, values


@dataclass(frozen=True)
class D2FWishes:
    block: int
    threshold: float
    add_block: float
    semi_complete: float


@dataclass
class D2FBlock:
    start: int
    ids: list[int | None]
    may_be_forced: bool = False

    @property
    def progress(self) -> float:
        return sum(token is not None for token in self.ids) / len(self.ids)

    @property
    def masks(self) -> list[int]:
        return [column for column, token in enumerate(self.ids) if token is None]


@torch.no_grad()
def generate(
    forward: Forward,
    prompt: list[int],
    gen_length: int,
    wishes: D2FWishes,
    mask_id: int,
    shift: int = 0,
    max_len: int | None = None,
) -> tuple[list[int], int]:
    """`gen_length` tokens, past any end token, and the forwards until all were there.

    Args:
        shift: how many rows before its own a position is predicted.
        max_len: no block goes past it.
    """
    number = -(-gen_length // wishes.block)
    end = min(len(prompt) + number * wishes.block, max_len or 2**31)
    blocks: list[D2FBlock] = []
    forwards = 0
    while True:
        answer = [token for block in blocks for token in block.ids][:gen_length]
        if len(answer) == gen_length and None not in answer:
            return [token for token in answer if token is not None], forwards
        next_start = len(prompt) + len(blocks) * wishes.block
        last = blocks[-1].progress if blocks else 1.0
        if next_start < end and last >= wishes.add_block:
            length = min(wishes.block, end - next_start)
            blocks.append(D2FBlock(next_start, [None] * length))
        before = 1.0
        for block in blocks:
            block.may_be_forced |= before >= wishes.semi_complete
            before = block.progress
        logits = see(forward, prompt, blocks, mask_id)
        forwards += 1
        confidence, token = logits.softmax(-1).max(-1)
        for block in blocks:
            row = block.start - shift
            found = {column: float(confidence[row + column]) for column in block.masks}
            taken = [c for c, value in found.items() if value > wishes.threshold]
            if found and not taken and block.may_be_forced:
                taken = [max(found, key=lambda c: (found[c], -c))]
            for column in taken:
                block.ids[column] = int(token[row + column])


def see(
    forward: Forward, prompt: list[int], blocks: list[D2FBlock], mask_id: int
) -> Tensor:
    """[length, vocab] logits of the prompt and all blocks, the mask's left out."""
    units, logits = Units(), []
    parts = [(0, prompt)]
    for block in blocks:
        ids = [mask_id if token is None else token for token in block.ids]
        parts.append((block.start, ids))
    for start, ids in parts:
        logits.append(forward(torch.tensor(ids), start, units))
    seen = torch.cat(logits)
    seen[:, mask_id] = -torch.inf
    return seen
