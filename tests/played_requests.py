"""Requests played through span arithmetic, the worker's half beside the plan's."""

from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st

from tests.decodings import decoding
from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.plans.base import Plan, Span
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.plans.grid import Grid, answer_grid
from vllm_dllm.plans.seeded import Seeded, SeededCausal
from vllm_dllm.plans.window import Window
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.buffers import Buffers
from vllm_dllm.worker.spans.registry import LAYOUTS

blocks = st.one_of(st.integers(1, 9), st.sampled_from([16, 32]))
caches = st.sampled_from(["none", "prefix", "dual"])


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """A grid of full attention."""
    prompt, answer = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    max_len = prompt + draw(st.integers(answer, 80))
    return answer_grid(prompt, answer, draw(blocks), max_len)


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
            query_start_loc=torch.tensor([0, got.length], dtype=torch.int32),
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
        count = torch.tensor([known_after - got.known])
        next_start = self.layout.next_start(spans, count)
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
