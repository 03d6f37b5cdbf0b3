"""Several blocks at once, block-causal."""

from typing import NamedTuple

from vllm_dllm.plans.base import Span
from vllm_dllm.plans.grid import Grid


class Buffered(NamedTuple):
    """Block-causal, with several blocks under denoising at once.

    Diffulex's multi_bd. The *buffer* holds the blocks from the first one without final
    KV on; a finished block stays in it for the forward that makes its KV final. All of
    it is forwarded in every step: blocks that are not opened yet as masks, which
    nothing before them sees. Which blocks are opened when is part of the answer, so a
    step with a canvas is never cut: it waits.
    """

    grid: Grid
    """Ends with the block that holds the last token of the answer."""
    prompt: int
    """Number of tokens of the prompt."""
    size: int
    """How many blocks the buffer holds."""

    def first(self, mark: int | None) -> int:
        """First position of the buffer."""
        return self.grid.start_of(self.prompt) if mark is None else mark

    def span(self, computed: int, known: int, mark: int | None) -> Span:
        """`mark` is the first position of the buffer: where the KV was lost, or a page
        of another request holds a block of it, its blocks do not leave it earlier."""
        first = self.first(mark)
        end = min(first + self.size * self.grid.block, self.grid.end)
        return Span(computed, end, known, end - known, parts_end=first)

    def clip(self, span: Span, budget: int) -> Span:
        if span.length <= budget:
            return span
        block = self.grid.block
        end = min(span.start + budget // block * block, span.parts_end)
        return Span(span.start, max(end, span.start), span.known, 0)

    def next_start(self, span: Span, known: int) -> int:
        return self.grid.start_of(min(span.end, span.known))

    def mark(self, span: Span, mark: int | None) -> int:
        return max(self.first(mark), self.next_start(span, span.known))
