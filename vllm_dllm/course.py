"""Course: where a request is, and where it will be when its steps under way are back.

With asynchronous scheduling a step is planned before the tokens of the one before it
are there. All that these can change of the span is that the block has ended: the worker
finds everything else itself. So a step is planned as if the one under way made nothing
known. What it really was, the scheduler finds when it comes back, from the tokens that
were known when it ran: that is what the worker laid out.

If the block has ended, the step on it makes its KV final, as a chunk of a prompt does,
and decides nothing. Where that is likely, the span goes on into the next block, whose
first step it may then be; or, where every step of a block reads the keys of its first
one, and where no block follows, the request waits.
"""

from collections import deque
from dataclasses import dataclass, field

from vllm_dllm.plans.base import Plan, Span
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.buffered import Buffered
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.plans.grid import UNBOUNDED
from vllm_dllm.plans.seeded import Seeded

NOTHING = Span(0, 0, 0, 0)
"""Of a request that waits."""


@dataclass
class Pace:
    """How many steps the blocks of a request take."""

    last: int | None = None
    """Those of the last block that ended; None before."""
    taken: int = 0
    """Those of this one."""

    def note(self, plan: Plan, span: Span, known: int) -> None:
        """Count a step, after which `known` tokens are known."""
        self.taken += span.canvas > 0
        if plan.grid.start_of(known) != plan.grid.start_of(span.known):
            self.last, self.taken = self.taken, 0

    def ends(self, under_way: int) -> bool:
        """Whether the block has likely ended after as many more steps."""
        return self.last is not None and self.taken + under_way >= self.last


@dataclass
class Course:
    """The steps of one request, as the scheduler knows them."""

    plan: Plan
    goes_ahead: bool = False
    """Whether a step may be planned while one is under way."""
    end: int = UNBOUNDED
    """Known tokens at which the request ends."""
    start: int = 0
    """First position of the oldest step under way, or of the next one."""
    mark: int | None = None
    """What the plan remembers of the last step that is back."""
    under_way: deque[Span] = field(default_factory=deque)
    """What was planned of steps that are not back, the oldest first."""
    pace: Pace = field(default_factory=Pace)
    _wanted: tuple[tuple[int, int, int | None], Span] | None = None
    """The last answer of `wanted`, and what was asked."""

    def wanted(self, computed: int, known: int) -> Span:
        """What the request wants to forward next; asked several times in a step.

        Args:
            computed: first position of the step, as `ahead` said it; 0 when the KV was
                lost.
            known: number of known tokens.
        """
        asked = computed, known, self.mark
        if self._wanted is None or self._wanted[0] != asked:
            self._wanted = asked, self._span(computed, known)
        return self._wanted[1]

    def _span(self, computed: int, known: int) -> Span:
        if not self.under_way:
            return self.plan.span(computed, known, self.mark)
        if not self.goes_ahead:
            return NOTHING
        start, mark = self._foreseen(known)
        ends = self.pace.ends(sum(span.canvas > 0 for span in self.under_way))
        if ends and self.plan.grid.end_of(known) >= self.end:
            return NOTHING
        return span_ahead(self.plan, start, known, mark, ends) or NOTHING

    def ahead(self, known: int) -> int:
        """First position of the next step, if those under way make nothing known."""
        return self._foreseen(known)[0] if self.under_way else self.start

    def _foreseen(self, known: int) -> tuple[int, int | None]:
        place = self.start, self.mark
        for planned in self.under_way:
            place = self._after(self._taken(planned, *place, known), *place, known)
        return place

    def begin(self, planned: Span, computed: int) -> None:
        """A step is under way."""
        if not self.under_way:
            self.start = computed
        self.under_way.append(planned)
        self._wanted = None

    def back(self, known: int) -> Span:
        """The oldest step under way, which is back, as the worker took it.

        known: number of known tokens before it.
        """
        planned = self.under_way.popleft()
        self._wanted = None
        return self._taken(planned, self.start, self.mark, known)

    def _taken(self, planned: Span, start: int, mark: int | None, known: int) -> Span:
        if planned.known == known:
            return planned
        return self.plan.clip(self.plan.span(start, known, mark), planned.length)

    def next_start(self, taken: Span, known: int) -> int:
        """First position of the step after one that made `known` tokens known."""
        return self._after(taken, self.start, self.mark, known)[0]

    def settle(self, taken: Span, known: int, mark: int | None) -> None:
        """Go on behind a step that is back.

        Args:
            known: number of known tokens after it.
            mark: what the worker says that the plan remembers, if it says anything.
        """
        self.start, own = self._after(taken, self.start, self.mark, known)
        self.mark = own if mark is None else mark
        if self.goes_ahead:
            self.pace.note(self.plan, taken, known)

    def _after(
        self, taken: Span, start: int, mark: int | None, known: int
    ) -> tuple[int, int | None]:
        if not taken.length:  # planned for a block that had ended
            return start, mark
        return self.plan.next_start(taken, known), self.plan.mark(taken, mark)


def span_ahead(
    plan: Plan, start: int, known: int, mark: int | None, ends: bool
) -> Span | None:
    """What to forward while a step is under way; None: nothing before it is back.

    Args:
        start, known, mark: as in `Plan.span`, if that step makes nothing known.
        ends: whether it likely ends the block.
    """
    span = plan.span(start, known, mark)
    match plan:
        case Buffered() | FullAttention(cache="none"):
            return span  # of this length whatever becomes known
        case Seeded():
            # So is this one: where the block has ended its last row decides the seed.
            return span if span.length else None
        case FullAttention():
            return None if ends else span
        case BlockCausal():
            return span._replace(end=plan.grid.end_of(span.end)) if ends else span
    # What the next step forwards depends on more than whether a block has ended.
    return None
