"""The arithmetic of several blocks in flight."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.buffered import Buffered
from vllm_dllm.plans.grid import Grid, round_up


@st.composite
def plans(draw: st.DrawFn) -> tuple[Buffered, int]:
    """A plan, and the known tokens at which the request ends."""
    block = draw(st.integers(1, 9))
    prompt, answer = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    grid = Grid(0, block, round_up(prompt + answer, block))
    return Buffered(grid, prompt, draw(st.integers(2, 16))), prompt + answer


@given(plans(), st.integers(0, 100), st.integers(0, 10_000))
def test_a_request_is_answered_with_whole_buffers(
    case: tuple[Buffered, int], to_spare: int, seed: int
) -> None:
    """A buffer that is cut decides other tokens; one that is too long has no pages."""
    (plan, end), random = case, Random(seed)
    block, size = plan.grid.block, plan.size
    budget = size * block + to_spare
    computed, known, mark, steps = 0, plan.prompt, None, 0
    shown: list[int] = []
    while known < end:
        wanted = plan.span(computed, known, mark)
        got = plan.clip(wanted, budget)
        assert 0 < got.length <= budget, "a step that forwards nothing is repeated"
        assert got.end <= plan.grid.end
        if got.canvas:
            front = plan.first(mark)
            assert got == wanted
            assert front <= known < front + size * block
            assert got.end == min(front + size * block, plan.grid.end)
            shown.append(front)
            last = min(got.end, end)
            known = random.randint(known, last)
        else:
            # The forward that commits a whole buffer, or a part of what is before it.
            part = got.end % block == 0 and got.end <= plan.first(mark)
            assert got == wanted or part
        computed = plan.next_start(got, known)
        mark = plan.mark(got, mark)
        assert computed % block == 0 and computed <= got.known
        if steps < 100 and random.random() < 0.1:
            computed = 0  # preempted
        steps += 1
        assert steps < 1000, "does not end"
    # A block leaves no earlier for a page that was lost.
    assert shown == sorted(shown)


@given(plans(), st.integers(0, 300), st.integers(0, 3))
def test_a_part_of_a_buffer_is_never_forwarded(
    case: tuple[Buffered, int], budget: int, blocks: int
) -> None:
    """It would open blocks in other steps than with room enough."""
    plan, _ = case
    start = min(blocks * plan.grid.block, plan.first(None))
    wanted = plan.span(start, plan.prompt, None)
    got = plan.clip(wanted, budget)
    assert got.length <= max(0, budget)
    if got != wanted:
        assert got.canvas == 0
        assert got.end <= max(plan.first(None), start)
        assert got.length > budget - plan.grid.block or got.end == plan.first(None)


@given(st.integers(1, 9), st.integers(1, 60), st.integers(0, 60))
def test_a_finished_block_keeps_its_place_for_the_forward_that_commits_it(
    block: int, prompt: int, emitted: int
) -> None:
    """Given up a step early, it makes room for a block that Diffulex opens later."""
    plan = Buffered(Grid(0, block, round_up(prompt + 99, block)), prompt, 4)
    front = prompt // block * block
    known = prompt + min(emitted, 4 * block - 1)
    got = plan.span(front, prompt, None)
    assert plan.mark(got, None) == front
    after = plan.span(plan.next_start(got, known), known, plan.mark(got, None))
    assert after.start == front
    assert plan.mark(after, front) == known // block * block
    assert BlockCausal(plan.grid).next_start(got, known) == front
