"""Spans, and what plans have in common."""

from typing import NamedTuple, Protocol

from vllm_dllm.plans.grid import UNBOUNDED, Grid


class Span(NamedTuple):
    """One contiguous run of positions forwarded in one step."""

    start: int
    """First position."""
    end: int
    """One past the last position."""
    known: int
    """Number of known tokens of the request when the step was planned."""
    canvas: int
    """How many positions of the canvas the step may decide; 0 if it decides none."""
    branch: int = 0
    """Where a guided request keeps its unconditional branch: position p of it has the
    pages of position `branch` + p. 0 without guidance."""
    parts_end: int = UNBOUNDED
    """Only what lies before it may be forwarded in parts."""

    @property
    def is_known(self) -> bool:
        """Whether only known tokens are forwarded."""
        return self.end <= self.known

    @property
    def length(self) -> int:
        """Number of tokens forwarded. A refresh of both branches also forwards what
        lies between them, so that its pages are in one piece."""
        if not self.branch:
            return self.end - self.start
        if self.start == 0:
            return self.branch + self.end
        return 2 * (self.end - self.start)


class Plan(Protocol):
    """What the steps of one request forward."""

    @property
    def grid(self) -> Grid:
        """The request's blocks."""
        ...

    def span(self, computed: int, known: int, mark: int | None) -> Span:
        """The span that the request wants next.

        Args:
            computed: first position of the step, as `next_start` gave it; 0 when the
                KV was lost.
            known: number of known tokens.
            mark: what `mark` said after the last step; None before the first one.
        """
        ...

    def clip(self, span: Span, budget: int) -> Span:
        """The longest useful part of `span` with at most `budget` positions.

        The result may be empty.
        """
        ...

    def next_start(self, span: Span, known: int) -> int:
        """First position of the step after `span`, which made `known` tokens known."""
        ...

    def mark(self, span: Span, mark: int | None) -> int | None:
        """What is remembered of `span`, also where its KV is lost; `mark` is what was
        remembered before."""
        ...
