"""Blocks of a sequence of which every position sees all."""

from typing import NamedTuple

from vllm_dllm.plans.base import Span
from vllm_dllm.plans.grid import Grid
from vllm_dllm.plans.refreshes import after_refresh, all_or_nothing


class FullAttention(NamedTuple):
    """Every position sees the whole sequence: KV is never final, only reused.

    The first step of a block is a refresh: it forwards everything. Later steps of the
    block forward what `cache` says, and read the other keys as the refresh left them.
    """

    grid: Grid
    cache: str
    """"none": always everything; "prefix": from the start of the block on; "dual": the
    block alone."""
    branch: int = 0
    """As in `Span`."""
    suffix: int = 0
    """How many tokens that are given follow the canvas."""

    @property
    def end(self) -> int:
        """One past the last position of the sequence."""
        return self.grid.end + self.suffix

    def span(self, computed: int, known: int, mark: int | None) -> Span:
        """`mark` is the start of the block that the last refresh was made for."""
        start, end = self.grid.start_of(known), self.grid.end_of(known)
        canvas = end - known
        if self.cache == "none" or mark != start:
            return Span(0, self.end, known, canvas, self.branch)
        return after_refresh(self, start, end, computed, known)

    def clip(self, span: Span, budget: int) -> Span:
        return all_or_nothing(span, budget)

    def next_start(self, span: Span, known: int) -> int:
        start = self.grid.start_of(span.known)
        same_block = self.grid.start_of(known) == start
        return start if same_block and self.cache != "none" else 0

    def mark(self, span: Span, mark: int | None) -> int:
        return self.grid.start_of(span.known)
