"""Span arithmetic: which tokens a step forwards, and where the next step starts.

Pure functions shared by the scheduler (one process) and the worker (another), so that
the two cannot disagree. No torch, no vLLM. Vocabulary: docs/architecture.md.

All positions are absolute token positions of one request. A plan says what the steps of
a request forward; there is one for each kind of attention.
"""

from math import lcm
from typing import NamedTuple, Protocol

UNBOUNDED = 2**31 - 1
"""End of a grid that is extended as the request grows."""


class Grid(NamedTuple):
    """Where the diffusion blocks of a request lie."""

    origin: int
    """First position of the first block."""
    block: int
    """Length of a block; only the last one may be shorter."""
    end: int
    """One past the last position of the last block."""

    def start_of(self, known: int) -> int:
        """First position of the block that holds position `known`."""
        return self.origin + (known - self.origin) // self.block * self.block

    def end_of(self, known: int) -> int:
        """One past the last position of that block."""
        return min(self.start_of(known) + self.block, self.end)


class Sliding(Grid):
    """One block that goes along: it begins where the known tokens end."""

    def start_of(self, known: int) -> int:
        return known


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


def after_refresh(
    plan: FullAttention | Adaptive, start: int, end: int, computed: int, known: int
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


def full_attention_grid(
    prompt: int, max_tokens: int, block: int, max_len: int, is_exact: bool = False
) -> Grid:
    """Blocks over the whole answer, from the end of the prompt on.

    The answer is rounded up to whole blocks; what lies past `max_tokens` is denoised
    and never handed out. One that `is_exact` is not. No block goes past `max_len`, and
    none is longer than what is between.
    """
    length = max_tokens if is_exact else round_up(max_tokens, block)
    end = min(prompt + length, max_len)
    return Grid(prompt, max(1, min(block, end - prompt)), end)


def round_up(length: int, block: int) -> int:
    """The end of the last block that a sequence of `length` tokens touches."""
    return -(-length // block) * block


def page_size(block: int, granularity: int) -> int:
    """Smallest KV page that holds whole blocks and suits the attention backend.

    Prefix caching shares whole pages, and the KV of a token is final only with its
    block, so a page must never end inside a block.
    """
    return lcm(block, granularity)
