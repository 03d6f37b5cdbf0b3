"""Span arithmetic: properties, and whole requests played through it."""

from dataclasses import dataclass, field
from math import ceil
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_dllm import span
from vllm_dllm.span import Span

patient = settings(deadline=None)  # machines that run tests are busy ones

blocks = st.one_of(st.integers(1, 9), st.sampled_from([16, 32]))


@st.composite
def wanted_spans(draw: st.DrawFn) -> tuple[Span, int, int]:
    """A span that a request may want, its known tokens and its block size."""
    block = draw(blocks)
    computed = draw(st.integers(0, 8)) * block
    known = computed + draw(st.integers(0, 5 * block))
    return span.full_span(computed, known, block), known, block


@patient
@given(wanted_spans())
def test_a_span_covers_whole_blocks(case: tuple[Span, int, int]) -> None:
    """A span cut inside a block lets some of its tokens miss the others."""
    wanted, known, block = case
    assert wanted.start % block == wanted.end % block == 0
    assert wanted.length == wanted.end - wanted.start >= block
    assert wanted.end - wanted.canvas == known


@patient
@given(known=st.integers(0, 10_000), block=blocks)
def test_a_canvas_is_never_empty_nor_longer_than_a_block(
    known: int, block: int
) -> None:
    """Known tokens that end on a border leave no canvas, and decoding stops."""
    canvas = span.canvas_length(known, block)
    assert 1 <= canvas <= block
    assert (known + canvas) % block == 0


@patient
@given(wanted_spans(), st.integers(0, 300))
def test_a_clipped_span_keeps_to_the_budget(
    case: tuple[Span, int, int], budget: int
) -> None:
    """A span over the budget overruns the runner's buffers."""
    wanted, known, block = case
    got = span.clip(wanted, budget, block)
    assert got.start == wanted.start
    assert 0 <= got.length <= budget
    if got != wanted:
        assert got.canvas == 0
        assert got.end % block == 0
        assert got.end <= known


@patient
@given(wanted_spans(), st.integers(0, 5))
def test_a_span_within_the_budget_is_left_whole(
    case: tuple[Span, int, int], to_spare: int
) -> None:
    """Without its canvas a request that fits would decode a step later."""
    wanted, _, block = case
    assert span.clip(wanted, wanted.length + to_spare, block) == wanted


@patient
@given(wanted_spans(), st.integers(0, 300))
def test_a_clipped_span_wastes_no_budget(
    case: tuple[Span, int, int], budget: int
) -> None:
    """A chunk shorter than it could be costs the prompt more forwards."""
    wanted, known, block = case
    got = span.clip(wanted, budget, block)
    if got != wanted:
        one_more_block = got.end + block
        assert one_more_block - got.start > budget or one_more_block > known


@patient
@given(wanted_spans(), st.integers(0, 300))
def test_only_known_tokens_are_committed(
    case: tuple[Span, int, int], budget: int
) -> None:
    """KV of a block with masks in it, taken for final, spoils all that follows."""
    wanted, known, block = case
    got = span.clip(wanted, budget, block)
    done = span.committed(got, block)
    assert done % block == 0
    assert got.start <= done <= known
    assert done > known - block or got != wanted


@patient
@given(wanted_spans(), st.integers(0, 300), st.integers(0, 300))
def test_a_larger_budget_never_commits_less(
    case: tuple[Span, int, int], budget: int, more: int
) -> None:
    """A count that shrinks would free pages that are still read."""
    wanted, _, block = case
    less = span.committed(span.clip(wanted, budget, block), block)
    assert less <= span.committed(span.clip(wanted, budget + more, block), block)


@patient
@given(wanted_spans(), st.integers(0, 300))
def test_a_span_commits_all_but_the_block_of_its_canvas(
    case: tuple[Span, int, int], budget: int
) -> None:
    """The worker counts this way; it and the scheduler must not disagree."""
    wanted, _, block = case
    got = span.clip(wanted, budget, block)
    assert span.committed(got, block) == got.end - (block if got.canvas else 0)


@patient
@given(length=st.integers(0, 10_000), block=blocks)
def test_rounding_up_reaches_the_next_border_only(length: int, block: int) -> None:
    """A border too few cuts the last canvas off; one too many wastes a block."""
    rounded = span.round_up(length, block)
    assert rounded % block == 0
    assert length <= rounded < length + block


@patient
@given(block=st.integers(1, 300), granularity=st.integers(1, 64))
def test_a_page_holds_whole_blocks(block: int, granularity: int) -> None:
    """A page that ends inside a block is shared with KV that is not final."""
    page = span.page_size(block, granularity)
    assert page % block == 0
    assert page % granularity == 0
    smaller = range(granularity, page, granularity)
    assert not any(candidate % block == 0 for candidate in smaller)


@dataclass
class PlayedRequest:
    """A request as the engine treats it, with the model left out."""

    block: int
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
    final: set[int] = field(default_factory=set)
    """Positions whose cached KV was written with nothing but known tokens around."""
    canvas_forwards: dict[int, int] = field(default_factory=dict)
    """Per block, the forwards in which it was the canvas."""

    def __post_init__(self) -> None:
        self.known = self.prompt
        self.start_block()

    def start_block(self) -> None:
        canvas = span.canvas_length(self.known, self.block)
        self.masks = set(range(self.known, self.known + canvas))
        self.step = 0

    def preempt(self) -> None:
        """All KV is lost; the canvas is kept."""
        self.computed = 0
        self.final.clear()

    def forward(self, budget: int, random: Random) -> None:
        wanted = span.full_span(self.computed, self.known, self.block)
        got = span.clip(wanted, budget, self.block)
        assert got.length, "a step that forwards nothing is repeated for ever"
        assert self.final >= set(range(got.start)), "reads KV that is not final"
        for start in range(got.start, got.end, self.block):
            in_block = range(start, start + self.block)
            whole = in_block.stop <= self.known
            (self.final.update if whole else self.final.difference_update)(in_block)
        self.computed = span.committed(got, self.block)
        assert set(range(self.computed)) <= self.final
        if got.canvas:
            self.denoise(random)

    def denoise(self, random: Random) -> None:
        """Any rule: at least the step's quota of masks become tokens."""
        number = self.known // self.block
        self.canvas_forwards[number] = self.canvas_forwards.get(number, 0) + 1
        quota = self.block // self.steps + (self.step < self.block % self.steps)
        quota = min(quota, len(self.masks))
        count = random.randint(quota, len(self.masks))
        self.masks -= set(random.sample(sorted(self.masks), count))
        self.step += 1

        border = self.known + span.canvas_length(self.known, self.block)
        stable = min([*self.masks, border, self.end])
        self.emitted += range(self.known, stable)
        self.known = stable
        if self.known == border:
            self.start_block()


@patient
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
    request = PlayedRequest(block, steps, prompt, prompt + answer)
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
