"""Whatever the API accepts, the worker can store and compute.

Requests with anything in them pass the real validators, and what they let through runs
on the real tables and the real sampler of the worker, in mixed batches.
"""

from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from tests.accepted import MAX_LEN, VOCAB, Door, Refused, ask, door, one_oddity_each
from tests.worker.desk import MAX_LEN as DESKS_MAX_LEN
from tests.worker.desk import Desk, Running
from vllm_dllm.decoding.base import CanvasStep
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.params import MAX_BUFFER_SIZE, MAX_STEPS
from vllm_dllm.request import MAX_REMEMBERED, decoding_of, plan_of
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.sampler import DenoisingSampler
from vllm_dllm.worker.slots import Slots

MODELS = ["sdar-pub0", "llada22-pub1", "llada-pub0", "dream-pub0"]
"""Golden checkpoints: block-causal, with moves too, full attention, and that with
shifted logits."""
EVERY_FILTER = {
    "temperature": 1.0,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.01,
    "repetition_penalty": 1.2,
    "logprobs": 3,
    "max_tokens": 12,
    "min_tokens": 2,
}


class WatchfulSampler(DenoisingSampler):
    """Keeps what its rules were asked about."""

    asked: CanvasStep

    def _canvas_step(self, *args: Any) -> CanvasStep:
        step = super()._canvas_step(*args)
        # The step will change the batch that these are of.
        self.asked = replace(step, masked=step.masked.clone())
        return step


class AcceptingDesk(Desk):
    """A desk of a golden checkpoint's server, for requests that were let in."""

    def __init__(self, way_in: Door) -> None:
        assert DESKS_MAX_LEN == MAX_LEN
        self.config = way_in.config
        self.mask = self.config.mask_token_id
        self.slots = Slots(self.config, 8, VOCAB, torch.device("cpu"))
        self.all_token_ids = torch.zeros(8, MAX_LEN, dtype=torch.int32)
        table = SimpleNamespace(gpu=self.all_token_ids)
        states = SimpleNamespace(all_token_ids=table)
        vllms = SimpleNamespace(sampling_states=None, req_states=states)
        self.sampler = WatchfulSampler(self.slots, states, vllms)
        self.running: dict[str, Running] = {}
        self.budget = 10 * MAX_LEN

    def let_in(self, name: str, prompt: list[int], params: SamplingParams) -> None:
        max_tokens = min(params.max_tokens, MAX_LEN - len(prompt))
        decoding = decoding_of(params, self.config, max_tokens)
        plan = plan_of(decoding, self.config, len(prompt), max_tokens)
        slot, end = self.free_slots()[0], len(prompt) + max_tokens
        self._place(Running(name, prompt, params, slot, plan, end, known=len(prompt)))

    def preempt(self, name: str) -> None:
        """Take its slot and its keys from a request, and let it go on in another."""
        request = self.running.pop(name)
        self.slots.suspend(name, request.slot)
        self.slots.release(request.slot)
        request.slot, request.computed = self.free_slots()[-1], 0
        self._place(request)

    def check_tables(self) -> None:
        """Everything is a number, and nothing is wider than a request is long."""
        slots = self.slots
        full = self.config.facts.full_attention
        longest = MAX_LEN if full else MAX_BUFFER_SIZE * self.config.block
        for table in (slots.canvas.tokens, slots.canvas.decided_at):
            assert table.values.shape[1] <= longest + 1
        for memory in slots.rules.memory.values():
            assert memory.values[0].numel() <= MAX_REMEMBERED
        assert slots.rules.time.shape[1] <= max(MAX_STEPS, MAX_LEN)
        for kept in slots.logprobs.kept.values():
            assert kept.logprobs.shape[0] <= MAX_LEN
            assert kept.logprobs.shape[1] <= VOCAB + 1
        if full:
            layout = slots.layout.layouts[0]
            assert layout.given.tokens.values.shape[1] <= MAX_LEN
            assert layout.cfg_scale.isfinite().all()
        sampling = slots.sampling
        numbers = [*slots.rules.parameters.values(), slots.rules.time]
        numbers += [sampling.temperature, sampling.top_p, sampling.min_p]
        assert all(number.isfinite().all() for number in numbers)
        assert ((sampling.top_k > 0) & (sampling.top_k <= VOCAB)).all()

    def check_step(self, logits: Any) -> None:
        """Take a step; what it decides by, and with what, is what it should be."""
        names = [*self.running]
        rules = [self.slots.rules.algorithm[r.slot] for r in self.running.values()]
        answers = {name: self.running[name].answer for name in names}
        decides = any(r.span().canvas for r in self.running.values())
        step = self.step(logits)
        for answer in answers.values():
            assert all(0 <= token < VOCAB and token != self.mask for token in answer)
        if not decides:
            return
        asked, batch = self.sampler.asked, step.batch
        wanted = asked.masked
        for measure in (asked.confidence, asked.entropy, asked.margin):
            if measure is not None:
                assert measure[wanted].isfinite().all()
        assert ((asked.confidence >= 0) & (asked.confidence <= 1.001))[wanted].all()
        chosen = asked.candidate[wanted]
        assert ((chosen >= 0) & (chosen < VOCAB) & (chosen != self.mask)).all()
        # Only Dream's rules may let a step pass by, and those that may delete.
        for index, rule in enumerate(rules):
            masked = asked.masked[list(batch.blocks_of(index))]
            if not get_rule(rule).needs & {"time", "moves"} and masked.any():
                assert (masked & ~batch.masked[list(batch.blocks_of(index))]).any()
        if (told := step.output.logprobs_tensors) is not None:
            assert not told.logprobs.isnan().any()
            assert (
                (told.logprob_token_ids >= 0) & (told.logprob_token_ids < VOCAB)
            ).all()


def random_logits(seed: int, scale: float, dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def logits(batch: CanvasBatch, rows: int) -> torch.Tensor:
        values = torch.randn(rows, VOCAB, generator=generator) * scale
        return values.to(dtype)

    return logits


def run(desk: AcceptingDesk, logits: Any, preempted: bool = False) -> None:
    """The first steps of what was let in."""
    desk.check_tables()
    for step in range(6):
        if desk.running:
            desk.check_step(logits)
        if preempted and step == 2 and desk.running:
            desk.preempt(next(iter(desk.running)))
    desk.check_tables()


@pytest.mark.parametrize("model", MODELS)
def test_no_value_at_an_end_of_its_range_ends_the_engine(model: str) -> None:
    """A value that only the worker cannot take ends the engine for everybody."""
    way_in, accepted = door(model), 0
    asked = one_oddity_each(way_in.config.facts.full_attention)
    for first in range(0, len(asked), 6):
        desk = AcceptingDesk(way_in)
        for index, fields in enumerate(asked[first : first + 6]):
            prompt = [index] * (1 + index % 3)
            try:
                params = way_in.offline({"max_tokens": 8} | fields, prompt)
            except Refused:
                continue
            accepted += 1
            desk.let_in(str(index), prompt, params)
        run(desk, random_logits(first, 30.0, torch.float16))
    assert 100 < accepted < len(asked) - 100


@pytest.mark.parametrize("model", MODELS)
def test_whatever_the_api_accepts_the_worker_can_store_and_compute(model: str) -> None:
    """As above, of values that nobody thought of, and of what they do together."""
    accepted: set[str] = set()
    refused: set[str] = set()
    way_in = door(model)

    @settings(max_examples=120, deadline=None, derandomize=True)
    @given(
        seeds=st.lists(st.integers(0, 2**20), min_size=3, max_size=6, unique=True),
        scale=st.sampled_from([3.0, 0.0, 1.0, 30.0]),
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        preempted=st.booleans(),
    )
    def check(
        seeds: list[int], scale: float, dtype: torch.dtype, preempted: bool
    ) -> None:
        desk = AcceptingDesk(way_in)
        desk.let_in("every filter", [7] * 5, way_in.offline(EVERY_FILTER, [7] * 5))
        for index, seed in enumerate(seeds):
            rng = Random(seed)
            prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))]
            try:
                params = ask(way_in, rng, prompt)
            except Refused as refusal:
                assert len(str(refusal)) < 2500
                refused.add(str(refusal))
            else:
                note(f"{index}: {len(prompt)} tokens, {params}")
                accepted.add(str(params))
                desk.let_in(str(index), prompt, params)
        run(desk, random_logits(len(seeds), scale, dtype), preempted)

    check()
    # A way in that refuses, or takes, everything would prove nothing.
    assert len(accepted) > 100 and len(refused) > 50
