"""A window that slides behind the known tokens."""

from typing import NamedTuple

from vllm_dllm.plans.base import Span
from vllm_dllm.plans.grid import Sliding


class Window(NamedTuple):
    """A token sees those before it, and a window of the canvas slides behind the known
    tokens (WeDLM).

    The forward that shows the model a known token makes its KV final, wherever a step
    begins. Inside the window, decoded positions go before masks; that is the worker's.
    """

    grid: Sliding

    def span(self, computed: int, known: int, mark: int | None = None) -> Span:
        """All known tokens without final KV, then the window."""
        end = self.grid.end_of(known)
        return Span(computed, end, known, end - known)

    def clip(self, span: Span, budget: int) -> Span:
        # The window is forwarded whole or not at all.
        if span.length <= budget:
            return span
        return Span(span.start, min(span.start + budget, span.known), span.known, 0)

    def next_start(self, span: Span, known: int) -> int:
        return min(span.end, span.known)

    def mark(self, span: Span, mark: int | None) -> None:
        return None
