"""Blocks that see those before them."""

from typing import NamedTuple

from vllm_dllm.plans.base import Span
from vllm_dllm.plans.grid import Grid


class BlockCausal(NamedTuple):
    """A position sees its own block and those before it: finished blocks keep KV.

    A span starts and ends on block borders, which makes KV final in whole blocks: a
    block is final when it went through the model with nothing but known tokens.
    """

    grid: Grid

    def span(self, computed: int, known: int, mark: int | None = None) -> Span:
        """All known tokens without final KV, then the canvas."""
        end = self.grid.end_of(known)
        return Span(computed, end, known, end - known)

    def clip(self, span: Span, budget: int) -> Span:
        # A canvas is forwarded whole or not at all, and a chunk without it ends on a
        # block border, since the tokens of a block see each other.
        if span.length <= budget:
            return span
        canvas_end = span.known + span.canvas
        if canvas_end - span.start <= budget:
            return span._replace(end=canvas_end)  # behind it there are masks alone
        block = self.grid.block
        return Span(span.start, span.start + budget // block * block, span.known, 0)

    def next_start(self, span: Span, known: int) -> int:
        return self.grid.start_of(min(span.end, span.known))

    def mark(self, span: Span, mark: int | None) -> None:
        return None
