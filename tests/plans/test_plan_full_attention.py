"""Spans of full attention: what each step forwards, and whole requests."""

from dataclasses import dataclass, field
from math import ceil
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.played_requests import PlayedRequest, blocks, caches, grids
from vllm_dllm.plans.base import Span
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.plans.grid import Grid, answer_grid, round_up

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
    grid = answer_grid(prompt, answer, block, max_len, is_exact=suffix > 0)
    branch = round_up(grid.end + suffix, page) if page else 0
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
    grid = answer_grid(10, max_tokens=9, block=4, max_len=99, is_exact=True)
    assert grid == Grid(10, 4, 19)
    for cache, end in (("none", 24), ("prefix", 24), ("dual", 14)):
        plan = FullAttention(grid, cache, suffix=5)
        assert plan.span(0, 10, None) == Span(0, 24, 10, 4)
        start = 0 if cache == "none" else 10
        assert plan.span(start, 12, mark=10) == Span(start, end, 12, 2)
        assert plan.span(0, 18, None) == Span(0, 24, 18, 1)


def test_the_last_block_ends_with_the_longest_request() -> None:
    """A canvas past the longest request has no pages and no positions."""
    grid = answer_grid(prompt=10, max_tokens=9, block=8, max_len=21)
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
