"""Steps that are planned while one is under way, and what they turn out to be."""

from collections import deque
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from vllm_dllm.course import Course, Pace, span_ahead
from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.plans.base import Plan, Span
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.buffered import Buffered
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.plans.grid import Grid, Sliding, round_up
from vllm_dllm.plans.seeded import Seeded, SeededCausal
from vllm_dllm.plans.window import Window


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, int, int]:
    """A plan, the length of its prompt, and the known tokens at which it ends."""
    block = draw(st.integers(2, 9))
    prompt, answer = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    end = prompt + answer
    grid = Grid(0, block, round_up(end, block))
    own = Grid(prompt, block, prompt + round_up(answer, block))
    caches = [FullAttention(own, cache) for cache in ("none", "prefix", "dual")]
    several = Buffered(grid, prompt, draw(st.integers(2, 4)))
    causal = [BlockCausal(grid), Seeded(grid), several]
    plan: Plan = draw(st.sampled_from([*causal, *caches]))
    return plan, prompt, end


def decided(
    plan: Plan, known: int, end: int, seed: int, most: int, budget: int
) -> list[Span]:
    """The steps of a request that decide something, with at most `most` under way.

    Each of them makes some of its canvas known, drawn by lot; what is planned ends when
    the request does, and what was planned then is thrown away.
    """
    random, course = Random(seed), Course(plan, most > 1, end)
    steps: list[Span] = []
    lengths: deque[int] = deque()
    for _ in range(2000):
        while len(lengths) < most:
            start = course.ahead(known)
            planned = plan.clip(course.wanted(start, known), budget)
            if not planned.length:
                break
            course.begin(planned, start)
            lengths.append(planned.length)
        assert lengths, "nothing is under way, and nothing is planned"
        taken = course.back(known)
        assert taken.length <= lengths.popleft(), "more than there is room for"
        if taken.canvas:
            assert taken.known == known
            steps.append(taken)
            whole = taken.known + taken.canvas
            known = random.randint(min(known + (taken.canvas == 1), whole), whole)
        course.settle(taken, known, None)
        if known >= end:
            return steps
    raise AssertionError("does not end")


@given(plans(), st.integers(0, 10_000), st.integers(0, 40))
def test_a_request_takes_the_steps_that_it_takes_one_by_one(
    case: tuple[Plan, int, int], seed: int, to_spare: int
) -> None:
    """A step that is read as another one is counted, or makes other KV final, than the
    worker's."""
    plan, prompt, end = case
    budget = 4 * plan.grid.block + to_spare
    if isinstance(plan, FullAttention):
        budget += plan.end
    alone = decided(plan, prompt, end, seed, 1, budget)
    ahead = decided(plan, prompt, end, seed, 2, budget)
    assert [span[2:] for span in ahead] == [span[2:] for span in alone]
    if isinstance(plan, FullAttention):
        assert ahead == alone


def test_a_step_on_a_block_that_has_ended_makes_it_final() -> None:
    """Its KV would stay that of a step with masks."""
    course = Course(BlockCausal(Grid(0, 4, 100)), goes_ahead=True)
    course.begin(course.wanted(0, 6), 0)
    assert course.ahead(6) == 4
    course.begin(course.wanted(4, 6), 4)
    course.settle(course.back(6), 8, None)  # which ends [4, 8)
    assert course.back(8) == Span(4, 8, 8, 0)


def test_a_step_goes_on_where_a_block_likely_ends() -> None:
    """Every block would take one more forward."""
    plan = BlockCausal(Grid(0, 4, 12))
    assert span_ahead(plan, 4, 6, None, ends=False) == Span(4, 8, 6, 2)
    longer = span_ahead(plan, 4, 6, None, ends=True)
    assert longer == Span(4, 12, 6, 2)
    # Where there is no room for that, what is needed comes first.
    assert plan.clip(longer, 7) == Span(4, 8, 6, 2)
    # Behind the last block there is nothing.
    assert span_ahead(plan, 8, 9, None, ends=True) == Span(8, 12, 9, 3)


def test_a_refresh_is_not_planned_before_its_block() -> None:
    """It would be one of the block before, whose keys would be others then."""
    grid = Grid(5, 8, 29)
    for cache in ("prefix", "dual"):
        assert span_ahead(FullAttention(grid, cache), 5, 6, 5, ends=True) is None


def test_nothing_is_planned_behind_an_answer_that_likely_ends() -> None:
    """A forward of each request would be thrown away."""
    course = Course(BlockCausal(Grid(0, 4, 100)), goes_ahead=True, end=8)
    course.pace.last = 1
    course.begin(course.wanted(0, 3), 0)
    assert course.wanted(4, 3).length  # another block follows
    course.settle(course.back(3), 4, None)
    course.begin(course.wanted(0, 4), 0)
    assert not course.wanted(4, 4).length


def test_plans_that_need_more_than_the_end_of_a_block_wait() -> None:
    """The length of their next span is in the tokens that are not there."""
    grid = Grid(5, 8, 29)
    waiting = [AfterPrompt(grid), Window(Sliding(5, 8, 29)), SeededCausal(grid)]
    for plan in waiting:
        assert span_ahead(plan, 5, 6, None, ends=False) is None


def test_a_request_that_does_not_go_ahead_waits() -> None:
    """A grammar needs the tokens of the step before."""
    course = Course(BlockCausal(Grid(0, 4, 100)))
    course.begin(course.wanted(0, 6), 0)
    assert not course.wanted(4, 6).length


def test_the_pace_is_that_of_the_last_block() -> None:
    """Guesses from other blocks would all be too early or too late."""
    plan, pace = BlockCausal(Grid(0, 4, 100)), Pace()
    assert not pace.ends(5)  # nothing is known of the first one
    for known in (5, 6, 8):
        pace.note(plan, Span(4, 8, max(4, known - 1), 1), known)
    assert [pace.ends(under_way) for under_way in (2, 3)] == [False, True]
    pace.note(plan, Span(8, 12, 8, 4), 9)
    assert pace.ends(2)
