"""Blocks that begin with the token after the one before."""

from typing import NamedTuple

from vllm_dllm.plans.base import Span
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.grid import Grid


class Seeded(BlockCausal):
    """Block-causal, where a block does not begin with masks alone: its first token, the
    *seed*, is the one that follows the block before it.

    So the step that makes a block final forwards no canvas, and its last row decides
    the seed. The steps of the next block see it.
    """

    def span(self, computed: int, known: int, mark: int | None = None) -> Span:
        if self.grid.start_of(known) == known:
            return Span(computed, known, known, canvas=1)
        return super().span(computed, known)


class SeededCausal(NamedTuple):
    """Seeded blocks over a causal model: what is known is computed causally, and the
    positions of the block under denoising see each other.

    Blocks begin where the prompt ends. KV that a step on the block leaves is of no use
    to the next one; that of the step which makes the block final is plain causal KV.
    """

    grid: Grid

    def span(self, computed: int, known: int, mark: int | None = None) -> Span:
        """Known tokens without final KV, as far as the block, or else the block."""
        start = self.grid.start_of(known)
        if known == start:
            return Span(computed, known, known, canvas=1)
        if computed < start:
            return Span(computed, start, known, 0)
        end = self.grid.end_of(known)
        return Span(start, end, known, end - known)

    def clip(self, span: Span, budget: int) -> Span:
        # The block is forwarded whole or not at all; anything else in any parts.
        if span.length <= budget:
            return span
        end = span.start + budget if span.is_known else span.start
        return Span(span.start, end, span.known, 0)

    def next_start(self, span: Span, known: int) -> int:
        return span.end if span.is_known else span.start

    def mark(self, span: Span, mark: int | None) -> None:
        return None
