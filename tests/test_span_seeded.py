"""Seeded blocks: whole requests played through their plan."""

from dataclasses import dataclass, field
from math import ceil
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.test_span import BlockCausalRequest, blocks
from vllm_dllm.span import UNBOUNDED, Grid, Seeded, Span


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
        border = self.plan.grid.start_of(self.known) == self.known
        if not got.canvas or got.end > got.known:
            assert not (got.canvas and border), "a canvas that misses its first token"
            super().finish(got, random)
            return
        assert border and got.canvas == 1
        assert got.start < got.known == got.end, "no row predicts the seed"
        self.seeds.append(self.known)
        self.emitted.append(self.known)
        self.masks.remove(self.known)
        self.known += 1
        self.step += 1
        self.worker.check(got, self.known)
        self.computed = self.plan.next_start(got, self.known)
        if self.plan.grid.start_of(self.known) == self.known:
            self.start_block()  # of one token


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
