"""Span arithmetic: properties, and whole requests played through it."""

from dataclasses import dataclass, field
from math import ceil
from random import Random
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.decodings import decoding
from vllm_dllm import span
from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.span import (
    UNBOUNDED,
    BlockCausal,
    FullAttention,
    Grid,
    Plan,
    Sliding,
    Span,
    Window,
    full_attention_grid,
)
from vllm_dllm.span_seeded import Seeded, SeededCausal
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.buffers import Buffers
from vllm_dllm.worker.spans.registry import LAYOUTS

blocks = st.one_of(st.integers(1, 9), st.sampled_from([16, 32]))
caches = st.sampled_from(["none", "prefix", "dual"])


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


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """A grid of full attention."""
    prompt, answer = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    max_len = prompt + draw(st.integers(answer, 80))
    return full_attention_grid(prompt, answer, draw(blocks), max_len)


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
    grid = full_attention_grid(prompt, max_tokens, block, max_len)
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
    rounded = span.round_up(length, block)
    assert rounded % block == 0
    assert length <= rounded < length + block


@given(block=st.integers(1, 300), granularity=st.integers(1, 64))
def test_a_page_holds_whole_blocks(block: int, granularity: int) -> None:
    """A page that ends inside a block is shared with KV that is not final."""
    page = span.page_size(block, granularity)
    assert page % block == 0
    assert page % granularity == 0
    smaller = range(granularity, page, granularity)
    assert not any(candidate % block == 0 for candidate in smaller)


ATTENTION: dict[type, str] = {
    BlockCausal: "block_causal",
    Seeded: "seeded",
    SeededCausal: "seeded_causal",
    FullAttention: "full",
    Window: "window",
}
"""Whose plan it is."""


class Worker:
    """The worker's half of the arithmetic, which has to agree with the plan's."""

    def __init__(self, plan: Plan, steps: int) -> None:
        self.plan, cpu = plan, torch.device("cpu")
        attention = ATTENTION[type(plan)]
        config = DllmConfig.build(
            {"block_size": plan.grid.block, "mask_token_id": 99},
            facts=Facts(attention=attention),
        )
        self.layout = LAYOUTS[attention](config, 3, cpu, Buffers(3, cpu))
        guided = isinstance(plan, FullAttention) and plan.branch
        suffix = plan.suffix if isinstance(plan, FullAttention) else 0
        settled = decoding(
            steps=steps,
            cfg_scale=1.0 if guided else 0.0,
            suffix_token_ids=[*range(suffix)],
        )
        self.layout.add_request(1, settled, plan)

    def lay_out(self, got: Span) -> SpanBatch:
        """The worker knows of a span where it starts and how many tokens it has."""
        batch = SimpleNamespace(
            num_reqs=1,
            num_tokens=got.length,
            idx_mapping=torch.tensor([1]),
            idx_mapping_np=np.array([1]),
            num_scheduled_tokens=np.array([got.length]),
            num_draft_tokens_per_req=np.array([got.canvas]),
            num_computed_tokens_np=np.array([got.start]),
            query_start_loc=torch.tensor([0, got.length]),
            query_start_loc_np=np.array([0, got.length]),
            positions=torch.arange(got.start, got.start + got.length),
        )
        return self.layout.lay_out(batch, torch.tensor([got.known]))

    def check(self, got: Span, known_after: int) -> None:
        """After a span of at least one position."""
        spans, grid = self.lay_out(got), self.plan.grid
        start, length = int(spans.block_start), int(spans.block_length)
        assert start == grid.start_of(got.known)
        assert start + length == grid.end_of(got.known)
        assert int(spans.start) == got.start
        next_start = self.layout.next_start(spans, torch.tensor([known_after]))
        assert next_start.tolist() == [self.plan.next_start(got, known_after)]


@dataclass
class PlayedRequest:
    """A request as the engine treats it, with the model left out."""

    plan: Plan
    steps: int
    prompt: int
    end: int
    """Known tokens at which it ends."""
    known: int = 0
    computed: int = 0
    masks: set[int] = field(default_factory=set)
    """Positions of the block under denoising that are still masks."""
    step: int = 0

    emitted: list[int] = field(default_factory=list)
    canvas_forwards: dict[int, int] = field(default_factory=dict)
    """Per block, the forwards in which it was the canvas."""

    def __post_init__(self) -> None:
        self.known = self.prompt
        self.worker = Worker(self.plan, self.steps)
        self.start_block()

    def start_block(self) -> None:
        self.masks = set(range(self.known, self.plan.grid.end_of(self.known)))
        self.step = 0

    def preempt(self) -> None:
        """All KV is lost; the canvas is kept."""
        self.computed = 0

    def finish(self, got: Span, random: Random) -> None:
        """What happens once a span was forwarded."""
        if got.canvas:
            assert got.known + got.canvas == self.plan.grid.end_of(got.known)
            self.denoise(random)
        self.worker.check(got, self.known)
        self.computed = self.plan.next_start(got, self.known)

    def denoise(self, random: Random) -> None:
        """Any rule: at least the step's quota of masks become tokens."""
        start = self.plan.grid.start_of(self.known)
        border = self.plan.grid.end_of(self.known)
        self.canvas_forwards[start] = self.canvas_forwards.get(start, 0) + 1
        block = border - start
        quota = block // self.steps + (self.step < block % self.steps)
        if self.step >= self.steps - 1:
            quota = block
        quota = min(quota, len(self.masks))
        count = random.randint(quota, len(self.masks))
        self.masks -= set(random.sample(sorted(self.masks), count))
        self.step += 1

        stable = min([*self.masks, border, self.end])
        self.emitted += range(self.known, stable)
        self.known = stable
        if self.known == border and self.known < self.end:
            self.start_block()


@dataclass
class BlockCausalRequest(PlayedRequest):
    final: set[int] = field(default_factory=set)
    """Positions whose cached KV was written with nothing but known tokens around."""

    def preempt(self) -> None:
        super().preempt()
        self.final.clear()

    def forward(self, budget: int, random: Random) -> None:
        block = self.plan.grid.block
        wanted = self.plan.span(self.computed, self.known, None)
        got = self.plan.clip(wanted, budget)
        assert got.length, "a step that forwards nothing is repeated for ever"
        assert self.final >= set(range(got.start)), "reads KV that is not final"
        for start in range(got.start, got.end, block):
            in_block = range(start, start + block)
            whole = in_block.stop <= self.known
            (self.final.update if whole else self.final.difference_update)(in_block)
        self.finish(got, random)
        assert set(range(self.computed)) <= self.final


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


REFRESH, STEP = "refresh", "step"


@dataclass
class FullAttentionRequest(PlayedRequest):
    keys: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Of each page position: what wrote it, and for which block."""
    mark: int | None = None
    replays: int = 0
    lengths: list[int] = field(default_factory=list)

    def preempt(self) -> None:
        super().preempt()
        self.keys.clear()

    def forward(self, random: Random) -> None:
        plan, grid = self.plan, self.plan.grid
        assert isinstance(plan, FullAttention)
        start, end = grid.start_of(self.known), grid.end_of(self.known)
        got = plan.span(self.computed, self.known, self.mark)
        assert plan.clip(got, got.length) == got
        assert plan.clip(got, got.length - 1).length == 0, "a part of it is no use"
        self.lengths.append(got.length)

        branches = [0, plan.branch] if plan.branch else [0]
        forwarded = {
            p + branch for branch in branches for p in range(got.start, got.end)
        }
        sequence = {p + branch for branch in branches for p in range(plan.end)}
        if got.start == 0:
            forwarded |= set(range(plan.end, plan.branch))  # one piece of pages
        assert got.length == len(forwarded)
        assert {p + t for t in branches for p in range(start, end)} <= forwarded
        # A later step of a block reads what the block's own refresh made.
        stale = {self.keys.get(p) for p in sequence - forwarded}
        assert stale <= {(REFRESH, start)}, "reads keys of another block, or none"
        first = self.mark != start or got.canvas == 0
        assert (got.start == 0) == (first or plan.cache == "none")
        for position in forwarded:
            self.keys[position] = (REFRESH if first else STEP, start)
        if got.canvas == 0:
            self.replays += 1
            assert self.mark == start, "a refresh that could have decided some"
        self.mark = start
        self.finish(got, random)


@given(
    cache=caches,
    block=blocks,
    prompt=st.integers(1, 40),
    answer=st.integers(1, 60),
    room=st.integers(0, 40),
    page=st.sampled_from([0, 1, 16]),
    suffix=st.sampled_from([0, 0, 1, 9]),
    random=st.randoms(use_true_random=False),
    preemptions=st.integers(0, 4),
    data=st.data(),
)
def test_a_request_with_full_attention_is_answered_whatever_is_cached(
    cache: str,
    block: int,
    prompt: int,
    answer: int,
    room: int,
    page: int,
    suffix: int,
    random: Random,
    preemptions: int,
    data: st.DataObject,
) -> None:
    """Keys of another block, or none after preemption, give another answer."""
    steps = data.draw(st.integers(1, block), label="steps")
    max_len = prompt + answer + room + suffix
    grid = full_attention_grid(prompt, answer, block, max_len, is_exact=suffix > 0)
    branch = span.round_up(grid.end + suffix, page) if page else 0
    plan = FullAttention(grid, cache, branch, suffix)
    assert plan.end <= max_len
    request = FullAttentionRequest(plan, steps, prompt, prompt + answer)
    allowed = preemptions
    while request.known < request.end:
        if preemptions and random.random() < 0.2:
            preemptions -= 1
            request.preempt()
        request.forward(random)
        num_blocks = ceil(answer / block)
        assert len(request.lengths) <= num_blocks * steps + allowed, "does not end"
    assert request.emitted == list(range(prompt, request.end))
    assert list(request.canvas_forwards) == list(range(prompt, request.end, block))
    assert max(request.canvas_forwards.values()) <= steps
    assert request.replays <= (0 if cache == "none" else allowed)


def test_what_each_step_of_a_block_forwards() -> None:
    """A step that forwards more wastes what a cache is for; one with less misses what
    Fast-dLLM computes anew."""
    grid = Grid(origin=10, block=4, end=20)
    spans = {
        "none": [Span(0, 20, 10, 4), Span(0, 20, 12, 2), Span(0, 20, 14, 4)],
        "prefix": [Span(0, 20, 10, 4), Span(10, 20, 12, 2), Span(0, 20, 14, 4)],
        "dual": [Span(0, 20, 10, 4), Span(10, 14, 12, 2), Span(0, 20, 14, 4)],
    }
    for cache, expected in spans.items():
        plan, computed, mark = FullAttention(grid, cache), 0, None
        for wanted, known_after in zip(expected, (12, 14, 16), strict=True):
            got = plan.span(computed, wanted.known, mark)
            assert got == wanted, cache
            computed = plan.next_start(got, known_after)
            mark = grid.start_of(wanted.known)


def test_what_follows_an_answer_is_forwarded_with_it() -> None:
    """It lies right behind the last token, where the last block ends, and is seen by
    all of them; keys of it are as old as the cache says."""
    grid = full_attention_grid(10, max_tokens=9, block=4, max_len=99, is_exact=True)
    assert grid == Grid(10, 4, 19)
    for cache, end in (("none", 24), ("prefix", 24), ("dual", 14)):
        plan = FullAttention(grid, cache, suffix=5)
        assert plan.span(0, 10, None) == Span(0, 24, 10, 4)
        start = 0 if cache == "none" else 10
        assert plan.span(start, 12, mark=10) == Span(start, end, 12, 2)
        assert plan.span(0, 18, None) == Span(0, 24, 18, 1)


def test_the_last_block_ends_with_the_longest_request() -> None:
    """A canvas past the longest request has no pages and no positions."""
    grid = full_attention_grid(prompt=10, max_tokens=9, block=8, max_len=21)
    assert grid == Grid(10, 8, 21)
    plan = FullAttention(grid, "dual")
    assert plan.span(0, 18, mark=10) == Span(0, 21, 18, 3)
    assert plan.span(18, 20, mark=18) == Span(18, 21, 20, 1)


def test_keys_lost_in_mid_block_are_made_again_before_the_block_goes_on() -> None:
    """With the block's own tokens in it, or with a decision, the replay is no replay:
    later steps would read other keys than without preemption."""
    for cache, end in (("prefix", 20), ("dual", 14)):
        plan = FullAttention(Grid(10, 4, 20), cache)
        replay = plan.span(0, 12, mark=10)
        assert replay == Span(0, 20, 12, 0)
        assert plan.next_start(replay, 12) == 10
        assert plan.span(10, 12, mark=10) == Span(10, end, 12, 2)
        # Between blocks there is nothing to replay.
        assert plan.span(0, 14, mark=10) == Span(0, 20, 14, 4)
    plan = FullAttention(Grid(10, 4, 20), "none")
    assert plan.span(0, 12, mark=10) == Span(0, 20, 12, 2)


def test_a_finished_block_is_left_for_a_refresh() -> None:
    """The next block would read keys from when all of the last was masks."""
    for cache in ("prefix", "dual"):
        plan = FullAttention(Grid(10, 4, 20), cache)
        for got in (Span(0, 20, 10, 4), Span(10, 14, 12, 2)):
            assert plan.next_start(got, 14) == 0
            assert plan.next_start(got, 13) == 10


def test_a_guided_span_holds_both_branches() -> None:
    """Tokens that are not counted are forwarded past the budget."""
    refresh = Span(0, 20, 10, 4, branch=32)
    assert refresh.length == 32 + 20  # with the gap, which keeps the pages in one piece
    assert Span(0, 32, 10, 4, branch=32).length == 64
    assert Span(10, 14, 12, 2, branch=32).length == 8
    assert Span(10, 20, 12, 2, branch=32).length == 20
    plan = FullAttention(Grid(10, 4, 20), "dual", branch=32)
    assert plan.span(0, 10, None) == refresh
    assert plan.clip(refresh, 51).length == 0
    assert plan.clip(refresh, 51).canvas == 0
    assert plan.clip(refresh, 52) == refresh


@given(grids(), caches, st.integers(0, 300), st.data())
def test_a_span_of_full_attention_is_forwarded_whole_or_not_at_all(
    grid: Grid, cache: str, budget: int, data: st.DataObject
) -> None:
    """Its tokens see one another: a part of it gives other keys and other tokens."""
    plan = FullAttention(grid, cache)
    known = data.draw(st.integers(grid.origin, grid.end - 1), label="known")
    start = grid.start_of(known)
    for computed, mark in ((0, None), (start, start), (0, start)):
        wanted = plan.span(computed, known, mark)
        got = plan.clip(wanted, budget)
        if wanted.length <= budget:
            assert got == wanted
        else:
            assert (got.length, got.canvas) == (0, 0)
