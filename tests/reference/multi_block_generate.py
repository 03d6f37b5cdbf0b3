"""Diffulex's multi_bd, one request at a time: greedy, uncached, block by block.

Written from the description of its states alone: nothing here knows of spans, slots or
tables. A block is *active* while it is decoded, and *stored* for the one forward that
makes its KV final.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Logits = Callable[[list[int | None]], Tensor]
"""[length, vocab] float32 of a sequence of whole blocks; None is a mask. A row sees its
own block and those before it."""


@dataclass(frozen=True)
class Wishes:
    block: int
    size: int
    """Blocks in flight."""
    threshold: float
    add_block: float
    semi_complete: float = 0.9
    token_stability: float = 0.0
    edit_threshold: float | None = None
    """None: no token is edited."""
    max_post_steps: int = 16


@dataclass
class Block:
    start: int
    active: bool = True
    stability: float = 0.0
    post_steps: int = 0
    steps: int = 0
    decisions: int = 0


class Run:
    def __init__(
        self, logits: Logits, prompt: list[int], gen_length: int, wishes: Wishes
    ) -> None:
        self.logits, self.prompt, self.wishes = logits, len(prompt), wishes
        end = len(prompt) + gen_length
        self.end = -(-end // wishes.block) * wishes.block
        self.answer = slice(len(prompt), end)
        self.ids: list[int | None] = [*prompt, *[None] * (self.end - len(prompt))]
        self.next = len(prompt) // wishes.block * wishes.block
        """Start of the block that is opened next."""
        self.resident: list[Block] = []
        self.finished = self.next
        """End of the blocks that will not change any more."""
        self.forwards = 0
        self.active_forwards = 0
        """Those that had an active block."""
        self.most_active = 0
        self.trace: dict[int, tuple[int, float]] = {}
        """Of each written position: the decisions of its block before, and the log of
        the token's probability."""
        self.held = 0
        """How often a block with masks was given nothing."""
        if len(prompt) % wishes.block:
            self.open()

    def positions(self, block: Block) -> range:
        return range(block.start, block.start + self.wishes.block)

    def masks(self, block: Block) -> list[int]:
        return [p for p in self.positions(block) if self.ids[p] is None]

    def progress(self, block: Block) -> float:
        return (self.wishes.block - len(self.masks(block))) / self.wishes.block

    def open(self) -> None:
        self.resident.append(Block(self.next))
        self.next += self.wishes.block

    def opens(self) -> bool:
        if self.next >= self.end:
            return False
        if not self.resident:
            return True
        last, wishes = self.resident[-1], self.wishes
        return (
            len(self.resident) < wishes.size
            and self.progress(last) >= wishes.add_block
            and last.stability >= wishes.token_stability
        )

    @property
    def is_done(self) -> bool:
        if self.wishes.edit_threshold is None:
            return None not in self.ids[self.answer]
        return self.finished >= self.answer.stop

    def step(self) -> None:
        for block in self.resident:
            block.steps += block.active
        stored = [block for block in self.resident if not block.active]
        if self.opens():
            self.open()
        logits = self.logits(self.ids[: self.next])
        confidence, token = logits.softmax(-1).max(-1)
        self.forwards += 1
        before = [1.0, *[self.progress(block) for block in self.resident]]
        writes: dict[int, int] = {}
        ready = {}
        active = [block for block in self.resident if block.active]
        self.active_forwards += bool(active)
        self.most_active = max(self.most_active, len(active))
        for block, share in zip(self.resident, before, strict=False):
            if block.active:
                found = self.decide(block, share, confidence.tolist(), token.tolist())
                ready[block.start], written = found
                writes |= {p: int(token[p]) for p in written}
                for p in written:
                    self.trace[p] = (block.decisions, float(confidence[p].log()))
                block.decisions += 1
        for position, value in writes.items():
            self.ids[position] = value
        self.settle(stored, ready)

    def decide(
        self, block: Block, before: float, confidence: list[float], token: list[int]
    ) -> tuple[bool, list[int]]:
        """Whether the block may be stored once it has no masks, and what is written."""
        masks, wishes = self.masks(block), self.wishes
        taken = [p for p in masks if confidence[p] > wishes.threshold]
        surest = max(masks, key=lambda p: (confidence[p], -p)) if masks else None
        if wishes.edit_threshold is None:
            if surest is not None and not taken:
                if before >= wishes.semi_complete:
                    taken = [surest]
                else:
                    self.held += 1
            block.stability = float(len(taken) == len(masks))
            return True, taken
        if surest is not None and not taken:
            taken = [surest]
        block.post_steps += not masks
        decoded = [
            p
            for p in self.positions(block)
            if p >= self.prompt and self.ids[p] is not None
        ]
        other = [p for p in decoded if token[p] != self.ids[p]]
        edited = [p for p in other if confidence[p] > wishes.edit_threshold]
        block.stability = 1 - len(other) / len(decoded) if decoded else 1.0
        if block.steps >= wishes.block + wishes.max_post_steps:
            block.stability = 1.0
            return True, masks + edited
        spent = not masks and block.post_steps > wishes.max_post_steps
        if spent or not taken + edited:
            return True, []
        return False, taken + edited

    def settle(self, stored: list[Block], ready: dict[int, bool]) -> None:
        for block in self.resident:
            if block.active and block.start == self.finished:
                block.active = bool(self.masks(block)) or not ready[block.start]
                if not block.active:
                    self.finished += self.wishes.block
        self.resident = [block for block in self.resident if block not in stored]


@torch.no_grad()
def generate(
    logits: Logits, prompt: list[int], gen_length: int, wishes: Wishes
) -> tuple[list[int], Run]:
    """`gen_length` tokens, past any end token, and what happened."""
    run = Run(logits, prompt, gen_length, wishes)
    while not run.is_done:
        run.step()
    tokens = [token for token in run.ids[run.answer] if token is not None]
    return tokens, run
