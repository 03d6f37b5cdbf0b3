"""Full attention, with blocks as long as they are found to be."""

from typing import NamedTuple

from vllm_dllm.plans.base import Span
from vllm_dllm.plans.grid import Grid
from vllm_dllm.plans.refreshes import after_refresh, all_or_nothing


class Adaptive(NamedTuple):
    """Full attention, with blocks whose ends are found while they are decoded.

    AdaBlock. A block begins where the last one ended; its refresh finds its end, which
    the worker tells. Tokens become known in whole blocks, so that one begins at the
    number of known tokens.
    """

    grid: Grid
    """Of the answer; its block is the longest that may be found."""
    cache: str
    """As in `FullAttention`."""
    branch: int
    """As in `Span`."""
    suffix: int
    """As in `FullAttention`."""
    default: int
    """Length of a block that ends at no delimiter."""
    window: int
    """How many positions are searched for one; 0 if there are none."""

    @property
    def end(self) -> int:
        """One past the last position of the sequence."""
        return self.grid.end + self.suffix

    def span(self, computed: int, known: int, mark: int | None) -> Span:
        """`mark` is the end of the last block of which one was found."""
        if mark is None or mark <= known:
            longest = min(self.grid.block, self.grid.end - known)
            return Span(0, self.end, known, longest, self.branch)
        if self.cache == "none":
            return Span(0, self.end, known, mark - known, self.branch)
        return after_refresh(self, known, mark, computed, known)

    def clip(self, span: Span, budget: int) -> Span:
        return all_or_nothing(span, budget)

    def next_start(self, span: Span, known: int) -> int:
        return known if known == span.known and self.cache != "none" else 0

    def mark(self, span: Span, mark: int | None) -> int | None:
        return mark
