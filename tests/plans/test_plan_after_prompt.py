"""The arithmetic of D2F: a prompt, and the blocks behind it."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.plans.grid import answer_grid


@st.composite
def plans(draw: st.DrawFn) -> tuple[AfterPrompt, int]:
    """A plan, and the known tokens at which the request ends."""
    prompt, answer = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    max_len = prompt + answer + draw(st.integers(0, 40))
    grid = answer_grid(prompt, answer, draw(st.integers(1, 20)), max_len)
    return AfterPrompt(grid, draw(st.integers(0, 1))), prompt + answer


@given(plans(), st.integers(0, 10_000))
def test_a_request_is_answered_with_its_open_blocks(
    case: tuple[AfterPrompt, int], seed: int
) -> None:
    """A step without the block that it opens decides rows that are not there; one that
    is cut decides other tokens."""
    (plan, end), random = case, Random(seed)
    origin, block, last = plan.grid
    opened, known, computed, mark, steps = origin, origin, 0, None, 0
    while known < end:
        got = plan.span(computed, known, mark)
        opened = min(opened + block * random.randint(0, 1), last)
        opened = max(opened, min(origin + block, last))
        assert opened <= got.end <= min(opened + block, last)
        assert got.start <= max(0, plan.grid.start_of(known) - plan.repeats)
        assert got.canvas == got.end - known > 0
        before, known = known, random.randint(known, min(opened, end))
        if known == opened < end:
            # A block that is decoded opens the next one.
            opened = min(opened + block, last) if got.end > opened else opened
        mark = opened
        computed = plan.next_start(got, known)
        # What is final: whole units of tokens that were known before the step.
        assert computed + plan.repeats == plan.grid.start_of(before)
        if steps < 100 and random.random() < 0.1:
            computed = 0  # preempted
        steps += 1
        assert steps < 1000, "does not end"


@given(plans(), st.integers(0, 200))
def test_a_step_is_forwarded_whole_or_not_at_all(
    case: tuple[AfterPrompt, int], budget: int
) -> None:
    """The tokens of a prompt see each other."""
    plan, _ = case
    wanted = plan.span(0, plan.prompt, None)
    got = plan.clip(wanted, budget)
    assert got == wanted or got.length == 0
    assert (got.length > 0) == (wanted.length <= budget)
