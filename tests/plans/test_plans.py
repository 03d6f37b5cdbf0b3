"""Span arithmetic: properties, and whole requests played through it."""

from dataclasses import dataclass, field
from math import ceil
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.played_requests import (
    BlockCausalRequest,
    Worker,
    blocks,
    grids,
)
from vllm_dllm.plans.base import Span
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.grid import (
    UNBOUNDED,
    Grid,
    Sliding,
    answer_grid,
    page_size,
    round_up,
)
from vllm_dllm.plans.window import Window


def block_causal(block: int) -> BlockCausal:
    return BlockCausal(Grid(0, block, UNBOUNDED))


@st.composite
def wanted_spans(draw: st.DrawFn) -> tuple[Span, BlockCausal]:
    """A span that a request may want, and the plan that it is from."""
    block = draw(blocks)
    computed = draw(st.integers(0, 8)) * block
    known = computed + draw(st.integers(0, 5 * block))
    plan = block_causal(block)
    return plan.span(computed, known), plan


@given(grids(), st.data())
def test_blocks_follow_one_another_from_the_origin_to_the_end(
    grid: Grid, data: st.DataObject
) -> None:
    """A position in two blocks is decoded twice; one in none, never."""
    borders = [*range(grid.origin, grid.end, grid.block), grid.end]
    known = data.draw(st.integers(grid.origin, grid.end - 1), label="known")
    start = max(border for border in borders if border <= known)
    assert grid.start_of(known) == start
    assert grid.end_of(known) == min(border for border in borders if border > start)


@given(st.integers(1, 60), st.integers(1, 60), blocks, st.integers(0, 70))
def test_the_canvas_is_the_answer_in_whole_blocks(
    prompt: int, max_tokens: int, block: int, room: int
) -> None:
    """The last block of the authors is a whole one: its masks are seen by the others.
    Past the longest request there is no place for them."""
    max_len = prompt + max_tokens + room
    grid = answer_grid(prompt, max_tokens, block, max_len)
    assert (grid.origin, grid.block) == (prompt, min(block, grid.end - prompt))
    assert prompt + max_tokens <= grid.end <= max_len
    whole = -(-max_tokens // block) * block
    assert grid.end - prompt == min(whole, max_tokens + room)


@given(wanted_spans())
def test_a_span_covers_whole_blocks(case: tuple[Span, BlockCausal]) -> None:
    """A span cut inside a block lets some of its tokens miss the others."""
    wanted, plan = case
    block = plan.grid.block
    assert wanted.start % block == wanted.end % block == 0
    assert wanted.length == wanted.end - wanted.start >= block
    assert wanted.end - wanted.canvas == wanted.known


@given(known=st.integers(0, 10_000), block=blocks)
def test_a_canvas_is_never_empty_nor_longer_than_a_block(
    known: int, block: int
) -> None:
    """Known tokens that end on a border leave no canvas, and decoding stops."""
    canvas = block_causal(block).span(0, known).canvas
    assert 1 <= canvas <= block
    assert (known + canvas) % block == 0


@given(wanted_spans(), st.integers(0, 300))
def test_a_clipped_span_keeps_to_the_budget(
    case: tuple[Span, BlockCausal], budget: int
) -> None:
    """A span over the budget overruns the runner's buffers."""
    wanted, plan = case
    got = plan.clip(wanted, budget)
    assert (got.start, got.known) == (wanted.start, wanted.known)
    assert 0 <= got.length <= budget
    if got != wanted:
        assert got.canvas == 0
        assert got.end % plan.grid.block == 0
        assert got.end <= wanted.known


@given(wanted_spans(), st.integers(0, 5))
def test_a_span_within_the_budget_is_left_whole(
    case: tuple[Span, BlockCausal], to_spare: int
) -> None:
    """Without its canvas a request that fits would decode a step later."""
    wanted, plan = case
    assert plan.clip(wanted, wanted.length + to_spare) == wanted


@given(wanted_spans(), st.integers(0, 300))
def test_a_clipped_span_wastes_no_budget(
    case: tuple[Span, BlockCausal], budget: int
) -> None:
    """A chunk shorter than it could be costs the prompt more forwards."""
    wanted, plan = case
    got = plan.clip(wanted, budget)
    if got != wanted:
        one_more_block = got.end + plan.grid.block
        assert one_more_block - got.start > budget or one_more_block > wanted.known


@given(wanted_spans(), st.integers(0, 300), st.integers(0, 40))
def test_only_known_tokens_are_committed(
    case: tuple[Span, BlockCausal], budget: int, emitted: int
) -> None:
    """KV of a block with masks in it, taken for final, spoils all that follows. What
    the step itself decided went through the model as masks."""
    wanted, plan = case
    got = plan.clip(wanted, budget)
    done = plan.next_start(got, wanted.known + emitted * bool(got.canvas))
    assert done % plan.grid.block == 0
    assert got.start <= done <= wanted.known
    assert done > wanted.known - plan.grid.block or got != wanted


@given(wanted_spans(), st.integers(0, 300), st.integers(0, 300))
def test_a_larger_budget_never_commits_less(
    case: tuple[Span, BlockCausal], budget: int, more: int
) -> None:
    """A count that shrinks would free pages that are still read."""
    wanted, plan = case
    less = plan.next_start(plan.clip(wanted, budget), wanted.known)
    assert less <= plan.next_start(plan.clip(wanted, budget + more), wanted.known)


@given(wanted_spans(), st.integers(0, 300))
def test_a_span_commits_all_but_the_block_of_its_canvas(
    case: tuple[Span, BlockCausal], budget: int
) -> None:
    """A block fewer is forwarded twice; one more has masks in it."""
    wanted, plan = case
    got = plan.clip(wanted, budget)
    block_of_canvas = plan.grid.block if got.canvas else 0
    assert plan.next_start(got, wanted.known) == got.end - block_of_canvas


@given(length=st.integers(0, 10_000), block=blocks)
def test_rounding_up_reaches_the_next_border_only(length: int, block: int) -> None:
    """A border too few cuts the last canvas off; one too many wastes a block."""
    rounded = round_up(length, block)
    assert rounded % block == 0
    assert length <= rounded < length + block


@given(block=st.integers(1, 300), granularity=st.integers(1, 64))
def test_a_page_holds_whole_blocks(block: int, granularity: int) -> None:
    """A page that ends inside a block is shared with KV that is not final."""
    page = page_size(block, granularity)
    assert page % block == 0
    assert page % granularity == 0
    smaller = range(granularity, page, granularity)
    assert not any(candidate % block == 0 for candidate in smaller)


@given(
    block=blocks,
    prompt=st.integers(1, 100),
    answer=st.integers(1, 60),
    random=st.randoms(use_true_random=False),
    preemptions=st.integers(0, 4),
    data=st.data(),
)
def test_a_request_of_any_shape_is_answered_once_from_left_to_right(
    block: int,
    prompt: int,
    answer: int,
    random: Random,
    preemptions: int,
    data: st.DataObject,
) -> None:
    """A position left out, emitted twice or read before it is final: a wrong answer."""
    steps = data.draw(st.integers(1, block), label="steps")
    plan = block_causal(block)
    request = BlockCausalRequest(plan, steps, prompt, prompt + answer)
    num_blocks = ceil(request.end / block)
    limit = num_blocks * steps + (preemptions + 1) * num_blocks
    forwards = 0
    while request.known < request.end:
        if preemptions and random.random() < 0.2:
            preemptions -= 1
            request.preempt()
        request.forward(random.randint(2 * block, 6 * block), random)
        forwards += 1
        assert forwards <= limit, "does not end"
    assert request.emitted == list(range(prompt, request.end))
    assert max(request.canvas_forwards.values()) <= steps
    assert len(request.canvas_forwards) == num_blocks - prompt // block


@dataclass
class WindowRequest:
    """A request whose window slides, with the model left out."""

    plan: Window
    prompt: int
    end: int
    """Known tokens at which it ends."""
    known: int = 0
    computed: int = 0
    decoded: set[int] = field(default_factory=set)
    """Positions of the window that are no masks."""
    final: set[int] = field(default_factory=set)
    """Positions whose cached KV was written with nothing but known tokens before."""

    def __post_init__(self) -> None:
        self.known = self.prompt
        self.worker = Worker(self.plan, 1)

    def preempt(self) -> None:
        """All KV is lost; the window is kept."""
        self.computed = 0
        self.final.clear()

    def forward(self, budget: int, random: Random) -> None:
        got = self.plan.clip(self.plan.span(self.computed, self.known, None), budget)
        assert 0 < got.length <= budget, "a step that forwards nothing is repeated"
        assert self.final >= set(range(got.start)), "reads KV that is not final"
        known = self.known
        self.final |= set(range(got.start, min(got.end, known)))
        self.final -= set(range(known, got.end))
        if got.canvas:
            window = range(known, got.end)
            assert len(window) == min(self.plan.grid.block, self.plan.grid.end - known)
            masks = [p for p in window if p not in self.decoded]
            self.decoded |= set(random.sample(masks, random.randint(1, len(masks))))
            while self.known in self.decoded and self.known < self.end:
                self.known += 1
        else:
            assert got.end <= known, "a part of a window is no use"
        self.worker.check(got, self.known)
        self.computed = self.plan.next_start(got, self.known)
        assert set(range(self.computed)) <= self.final
        assert self.computed == min(got.end, known), "known tokens are forwarded once"


@given(
    window=blocks,
    prompt=st.integers(1, 100),
    answer=st.integers(1, 60),
    room=st.integers(0, 40),
    random=st.randoms(use_true_random=False),
    preemptions=st.integers(0, 4),
)
def test_a_window_slides_to_the_end_of_any_request(
    window: int,
    prompt: int,
    answer: int,
    room: int,
    random: Random,
    preemptions: int,
) -> None:
    """A position that is read before it is final, or never forwarded: a wrong answer,
    or none."""
    end = prompt + answer
    plan = Window(Sliding(0, window, end + room))
    request = WindowRequest(plan, prompt, end)
    forwards = 0
    while request.known < request.end:
        if preemptions and random.random() < 0.2:
            preemptions -= 1
            request.preempt()
        request.forward(random.randint(window, 4 * window), random)
        forwards += 1
        assert forwards <= 5 * (prompt + 2 * answer), "does not end"
