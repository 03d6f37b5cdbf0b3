"""Steps that read what a forward of the whole sequence left."""

from typing import Protocol

from vllm_dllm.plans.base import Span


class Refreshed(Protocol):
    """A plan whose blocks begin with a refresh."""

    @property
    def end(self) -> int:
        """One past the last position of the sequence."""
        ...

    @property
    def cache(self) -> str:
        """As in `FullAttention`."""
        ...

    @property
    def branch(self) -> int:
        """As in `Span`."""
        ...


def after_refresh(
    plan: Refreshed, start: int, end: int, computed: int, known: int
) -> Span:
    """What a step forwards of a block [start, end) whose refresh was made, for a later
    one to read."""
    if computed == 0:
        # The keys of the refresh were lost in the middle of the block. They are made
        # again, as they were: from the tokens that were known then.
        return Span(0, plan.end, known, 0, plan.branch)
    forwarded = plan.end if plan.cache == "prefix" else end
    return Span(start, forwarded, known, end - known, plan.branch)


def all_or_nothing(span: Span, budget: int) -> Span:
    """`clip` where every position of a step sees the others: none of them can wait."""
    return span if span.length <= budget else Span(span.start, span.start, 0, 0)
