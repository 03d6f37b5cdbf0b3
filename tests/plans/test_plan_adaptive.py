"""Spans of blocks whose ends are found: whole requests, with the model left out."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from vllm_dllm.plans.adaptive import Adaptive
from vllm_dllm.plans.base import Span
from vllm_dllm.plans.grid import answer_grid

caches = st.sampled_from(["none", "prefix", "dual"])


@given(
    cache=caches,
    prompt=st.integers(1, 40),
    answer=st.integers(1, 60),
    default=st.integers(1, 40),
    suffix=st.sampled_from([0, 9]),
    branch=st.sampled_from([0, 128]),
    preemptions=st.integers(0, 5),
    random=st.randoms(use_true_random=False),
)
def test_each_block_is_read_from_its_own_refresh(
    cache: str,
    prompt: int,
    answer: int,
    default: int,
    suffix: int,
    branch: int,
    preemptions: int,
    random: Random,
) -> None:
    """Keys of another block, rows past the end of this one, or a block that begins
    where none ended give another answer."""
    window, room = answer // 4, prompt + answer
    longest = max(default, window)
    grid = answer_grid(prompt, answer, longest, room, is_exact=True)
    plan = Adaptive(grid, cache, branch, suffix, default, window)
    known, computed, mark, begun = prompt, 0, None, False
    steps = 0
    while known < room:
        if preemptions and random.random() < 0.2:
            preemptions, computed = preemptions - 1, 0
        got = plan.span(computed, known, mark)
        assert plan.clip(got, got.length) == got
        assert plan.clip(got, got.length - 1).length == 0
        assert (got.known, got.branch, got.start) == (known, branch, computed)
        if not begun:
            # The refresh decides where the block ends, so it may decide all of it.
            assert got == Span(0, plan.end, known, min(longest, room - known), branch)
            end, steps = known + random.randint(1, got.canvas), 0
        elif cache == "none":
            assert got == Span(0, plan.end, known, end - known, branch)
        elif computed == 0:
            assert got == Span(0, plan.end, known, 0, branch)
        else:
            stop = end if cache == "dual" else plan.end
            assert got == Span(known, stop, known, end - known, branch)
        mark = plan.mark(got, mark) if begun else end  # as the worker tells
        begun = True
        steps += 1
        done = got.canvas and (steps > 3 or random.random() < 0.4)
        known_after = end if done else known
        computed = plan.next_start(got, known_after)
        assert computed == (0 if done or cache == "none" else known)
        if done:
            known, begun = end, False
