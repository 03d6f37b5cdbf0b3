"""Seeded blocks: whole requests played through their plan."""

from dataclasses import dataclass, field
from math import ceil
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.played_requests import BlockCausalRequest, PlayedRequest, blocks
from vllm_dllm.plans.base import Span
from vllm_dllm.plans.grid import UNBOUNDED, Grid
from vllm_dllm.plans.seeded import Seeded, SeededCausal


@dataclass
class SeededRequest(BlockCausalRequest):
    seeds: list[int] = field(default_factory=list)
    """Positions decided by a step that does not forward them."""

    def preempt_and_find(self, random: Random) -> None:
        """Lose all KV but what the prefix cache still has, in pages of a block."""
        self.preempt()
        # vLLM leaves at least the last known token to be forwarded.
        self.computed = random.randint(0, (self.known - 1) // self.plan.grid.block)
        self.computed *= self.plan.grid.block
        self.final = set(range(self.computed))

    def finish(self, got: Span, random: Random) -> None:
        if not decides_seed(self, got):
            super().finish(got, random)


def decides_seed(request: PlayedRequest, got: Span) -> bool:
    """Take the step, if it is one that decides the first token of a block."""
    grid, known = request.plan.grid, request.known
    border = grid.start_of(known) == known
    if not got.canvas or not got.is_known:
        assert not (got.canvas and border), "a canvas that misses its first token"
        return False
    assert border and got.canvas == 1
    assert got.start < got.known == got.end, "no row predicts the seed"
    request.seeds.append(known)
    request.emitted.append(known)
    request.masks.remove(known)
    request.known += 1
    request.step += 1
    request.worker.check(got, request.known)
    request.computed = request.plan.next_start(got, request.known)
    if grid.start_of(request.known) == request.known < request.end:
        request.start_block()  # of one token
    return True


@dataclass
class CausalRequest(PlayedRequest):
    seeds: list[int] = field(default_factory=list)
    causal: set[int] = field(default_factory=set)
    """Positions whose KV was written from known tokens alone."""

    def preempt(self) -> None:
        super().preempt()
        self.causal.clear()

    def forward(self, budget: int, random: Random) -> None:
        start = self.plan.grid.start_of(self.known)
        wanted = self.plan.span(self.computed, self.known, None)
        got = self.plan.clip(wanted, budget)
        assert got.length, "a step that forwards nothing is repeated for ever"
        assert self.causal >= set(range(got.start)), "reads KV that is not final"
        forwarded = set(range(got.start, got.end))
        if got.is_known:
            self.causal |= forwarded
        else:
            assert (got.start, got.end) == (start, self.plan.grid.end_of(self.known))
            self.causal -= forwarded
        if not decides_seed(self, got):
            self.finish(got, random)
        assert set(range(self.computed)) <= self.causal


@given(
    block=blocks,
    prompt=st.integers(1, 100),
    answer=st.integers(1, 60),
    random=st.randoms(use_true_random=False),
    preemptions=st.integers(0, 4),
    data=st.data(),
)
def test_every_block_begins_with_the_token_after_the_one_before(
    block: int,
    prompt: int,
    answer: int,
    random: Random,
    preemptions: int,
    data: st.DataObject,
) -> None:
    """A canvas that is forwarded with the commit does not see its own first token, and
    one whose KV was found in the cache would have no row that predicts it."""
    steps = data.draw(st.integers(1, block), label="steps")
    plan = Seeded(Grid(0, block, UNBOUNDED))
    request = SeededRequest(plan, steps, prompt, prompt + answer)
    num_blocks = ceil(request.end / block)
    limit = num_blocks * (steps + 1) + (preemptions + 1) * (num_blocks + 1)
    forwards = 0
    while request.known < request.end:
        if preemptions and random.random() < 0.2:
            preemptions -= 1
            request.preempt_and_find(random)
        request.forward(random.randint(block, 6 * block), random)
        forwards += 1
        assert forwards <= limit, "does not end"
    assert request.emitted == list(range(prompt, request.end))
    assert request.seeds == [
        position for position in request.emitted if position % block == 0
    ]


def test_a_seed_costs_the_answer_one_forward_a_block() -> None:
    """The authors' count: a step that commits, then those of the canvas."""
    plan = Seeded(Grid(0, 32, UNBOUNDED))
    assert plan.span(0, 64) == Span(0, 64, 64, 1)
    assert plan.span(64, 65) == Span(64, 96, 65, 31)
    assert plan.span(0, 70) == Span(0, 96, 70, 26)
    assert plan.clip(plan.span(0, 64), 40) == Span(0, 32, 64, 0)


@given(
    block=blocks,
    prompt=st.integers(1, 100),
    answer=st.integers(1, 60),
    random=st.randoms(use_true_random=False),
    preemptions=st.integers(0, 4),
    data=st.data(),
)
def test_over_a_causal_model_blocks_begin_where_the_prompt_ends(
    block: int,
    prompt: int,
    answer: int,
    random: Random,
    preemptions: int,
    data: st.DataObject,
) -> None:
    """KV that was written while a block had masks, or saw what follows it, is not that
    of the causal model."""
    steps = data.draw(st.integers(1, block), label="steps")
    end = prompt + answer
    plan = SeededCausal(Grid(prompt, block, end))
    request = CausalRequest(plan, steps, prompt, end)
    num_blocks = ceil(answer / block)
    limit = num_blocks * (steps + 1) + (preemptions + 1) * (end // block + 1)
    forwards = 0
    while request.known < end:
        if preemptions and random.random() < 0.2:
            preemptions -= 1
            request.preempt()
        request.forward(random.randint(block, 6 * block), random)
        forwards += 1
        assert forwards <= limit, "does not end"
    assert request.emitted == list(range(prompt, end))
    assert request.seeds == list(range(prompt, end, block))
