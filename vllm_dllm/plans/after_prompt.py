"""Blocks behind a prompt that is one unit."""

from typing import NamedTuple

from vllm_dllm.plans.base import Span
from vllm_dllm.plans.grid import Grid


class AfterPrompt(NamedTuple):
    """Block-causal from the end of the prompt on, which is one unit before the blocks.

    D2F on models with full attention: the prompt sees nothing of the answer, so its KV
    is final after the first step. Every block of the answer may be under denoising. A
    step forwards those that are opened, and the one that it may open. It is never cut,
    since the tokens of a prompt see each other.
    """

    grid: Grid
    """Begins at the end of the prompt."""
    repeats: int = 0
    """How many final positions every step forwards again: with shifted logits the one
    before the first block, which predicts the first position of it."""

    @property
    def prompt(self) -> int:
        """Number of tokens of the prompt."""
        return self.grid.origin

    @property
    def size(self) -> int:
        """How many blocks the answer has."""
        return -(-(self.grid.end - self.grid.origin) // self.grid.block)

    def first(self, mark: int | None) -> int:
        """First position of the first block."""
        return self.grid.origin

    def span(self, computed: int, known: int, mark: int | None) -> Span:
        """`mark` is the end of the last block that was opened, which the worker says
        after each step (report.py)."""
        opened = self.grid.origin if mark is None else mark
        end = min(opened + self.grid.block, self.grid.end)
        return Span(computed, end, known, end - known)

    def clip(self, span: Span, budget: int) -> Span:
        return span if span.length <= budget else Span(span.start, span.start, 0, 0)

    def next_start(self, span: Span, known: int) -> int:
        return self.grid.start_of(span.known) - self.repeats

    def mark(self, span: Span, mark: int | None) -> int | None:
        return mark
