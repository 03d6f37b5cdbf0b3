"""Several blocks in flight: the worker against a plain description of them."""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.multi_block_generate import Run, Wishes, generate
from tests.worker.desk import MASK, MAX_LEN, VOCAB, Desk, TableLogits
from vllm_dllm.decoding.registry import RULES
from vllm_dllm.worker.canvas_batch import CanvasBatch


class SeenLogits:
    """Made up from what a position sees: its block and those before it."""

    def __init__(self, seed: int, sharpness: float) -> None:
        self.seed, self.sharpness = seed, sharpness

    def row(self, position: int, seen: list[int | None]) -> list[float]:
        draw = Random(f"{self.seed} {position} {seen}")
        # A part goes for one text, so that editing comes to an end.
        row = [draw.gauss(0, self.sharpness) for _ in range(VOCAB)]
        row[(7 * position + self.seed) % (VOCAB - 1)] += self.sharpness
        row[MASK] = float("-inf")
        return row

    def of(self, block: int) -> Any:
        """For the reference."""

        def logits(ids: list[int | None]) -> torch.Tensor:
            ends = [(p // block + 1) * block for p in range(len(ids))]
            return torch.tensor([self.row(p, ids[: ends[p]]) for p in range(len(ids))])

        return logits


class OfRequests:
    """Those of each request by its slot, for a desk."""

    def __init__(self, desk: Desk, of_slots: dict[int, SeenLogits]) -> None:
        self.desk, self.of_slots = desk, of_slots

    def __call__(self, batch: CanvasBatch, rows: int) -> torch.Tensor:
        length = self.desk.config.block
        request = batch.request.tolist()
        places = batch.position[batch.cell].tolist()
        seen = {
            index: [
                None if token < 0 else token
                for token in batch.sequence(index, self.desk.all_token_ids).tolist()
            ]
            for index in set(request)
        }
        values = []
        for index, position in zip(request, places, strict=True):
            slot = int(batch.spans.slot[index])
            end = (position // length + 1) * length
            values.append(self.of_slots[slot].row(position, seen[index][:end]))
        return torch.tensor(values).reshape(rows, VOCAB)


@dataclass
class Task:
    prompt: list[int]
    gen_length: int
    wishes: Wishes
    logits: SeenLogits

    @property
    def fields(self) -> dict[str, Any]:
        wishes = self.wishes
        fields: dict[str, Any] = {
            "algorithm": "threshold",
            "buffer_size": wishes.size,
            "threshold": wishes.threshold,
            "add_block_threshold": wishes.add_block,
            "token_stability_threshold": wishes.token_stability,
        }
        if wishes.edit_threshold is None:
            return fields | {"semi_complete_threshold": wishes.semi_complete}
        return fields | {
            "algorithm": "joint_threshold",
            "edit_threshold": wishes.edit_threshold,
            "max_post_steps": wishes.max_post_steps,
        }

    def expected(self) -> tuple[list[int], Run]:
        of_block = self.logits.of(self.wishes.block)
        return generate(of_block, self.prompt, self.gen_length, self.wishes)


def random_task(seed: int, block: int) -> Task:
    draw = Random(seed)
    gen_length = draw.randint(1, 30)
    edits = draw.random() < 0.4
    return Task(
        prompt=[draw.randrange(3, MASK) for _ in range(draw.randint(1, 20))],
        gen_length=gen_length,
        wishes=Wishes(
            block=block,
            size=draw.choice((2, 2, 3, 4, 16)),
            threshold=draw.choice((0.0, 0.3, 0.6, 0.9, 1.0)),
            add_block=draw.choice((0.1, 0.25, 0.5, 0.75, 1.0)),
            semi_complete=draw.choice((0.1, 0.25, 0.5, 0.9, 1.0)),
            token_stability=draw.choice((0.0, 0.0, 0.5, 1.0)),
            edit_threshold=draw.choice((0.0, 0.4, 0.8)) if edits else None,
            max_post_steps=draw.choice((0, 1, 3, 16)),
        ),
        logits=SeenLogits(seed, draw.choice((1.0, 2.0, 4.0))),
    )


def check(
    tasks: list[Task],
    block: int,
    whole_blocks: bool = False,
    preempts: Random | None = None,
) -> list[Run]:
    """The tasks in one batch, joining it one after the other."""
    desk = Desk("block-causal", slots=len(tasks) + 3, block=block)
    desk.slots.canvas.whole_blocks = whole_blocks
    of_slots: dict[int, Any] = {}
    logits = OfRequests(desk, of_slots)
    waiting, started = list(enumerate(tasks)), {}
    steps: dict[str, int] = {}
    while waiting or desk.running:
        if waiting:
            number, task = waiting.pop(0)
            name = f"r{number}"
            started[name] = desk.add(
                name, task.prompt, task.fields, max_tokens=task.gen_length
            )
        of_slots.clear()
        for name, request in desk.running.items():
            of_slots[request.slot] = tasks[int(name[1:])].logits
            steps[name] = steps.get(name, 0) + 1
        desk.step(logits)
        if preempts is not None and desk.running and preempts.random() < 0.4:
            desk.preempt(preempts.choice([*desk.running]))
    runs = []
    for number, task in enumerate(tasks):
        tokens, run = task.expected()
        assert started[f"r{number}"].answer == tokens, task
        assert steps[f"r{number}"] == run.forwards, task
        runs.append(run)
    return runs


@pytest.mark.parametrize("block", [1, 2, 4, 8])
def test_random_requests_are_answered_as_described(block: int) -> None:
    """A block that opens a step early or late gives other tokens, or more forwards."""
    runs: list[Run] = []
    for first in range(0, 60, 6):
        tasks = [random_task(100 * first + n, block) for n in range(6)]
        runs += check(tasks, block)
    assert max(run.most_active for run in runs) >= 3
    if block > 1:
        assert sum(run.held for run in runs) > 10


@pytest.mark.parametrize("block", [2, 4, 8])
def test_rows_of_whole_blocks_answer_the_same(block: int) -> None:
    """On a GPU logits are made of whole blocks, open or not."""
    for first in range(0, 18, 6):
        tasks = [random_task(9000 + 100 * first + n, block) for n in range(6)]
        check(tasks, block, whole_blocks=True)


@pytest.mark.parametrize("block", [2, 4, 8])
def test_a_buffer_survives_preemption(block: int) -> None:
    """Blocks that open again from masks are decoded in other steps, and so to other
    tokens."""
    for first in range(0, 18, 3):
        tasks = [random_task(5000 + 100 * first + n, block) for n in range(3)]
        check(tasks, block, preempts=Random(first), whole_blocks=first % 2 == 0)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    block=st.sampled_from((2, 3, 5)),
    size=st.integers(2, 4),
    prompt=st.integers(1, 11),
    thresholds=st.tuples(*[st.sampled_from((0.1, 0.4, 0.7, 1.0))] * 3),
    edit_threshold=st.sampled_from((None, 0.0, 0.5)),
    stability=st.sampled_from((0.0, 0.5)),
)
def test_one_more_block_in_flight_changes_none_in_front(
    seed: int,
    block: int,
    size: int,
    prompt: int,
    thresholds: tuple[float, float, float],
    edit_threshold: float | None,
    stability: float,
) -> None:
    """A block behind would be seen, or counted, by those before it."""
    accept, add_block, semi_complete = thresholds
    wishes = Wishes(
        block=block,
        size=size,
        threshold=accept,
        add_block=add_block,
        semi_complete=semi_complete,
        token_stability=stability,
        edit_threshold=edit_threshold,
        max_post_steps=2,
    )
    logits, answers = SeenLogits(seed, 2.0), []
    for more in (wishes, replace(wishes, size=size + 1)):
        task = Task([5] * prompt, (size + 2) * block, more, logits)
        desk = Desk("block-causal", block=block)
        request = desk.add("a", task.prompt, task.fields, max_tokens=task.gen_length)
        desk.run(OfRequests(desk, {request.slot: logits}))
        answers.append(request.answer)
    # Only the blocks after the first `size` open at another step.
    same = (prompt // block + size) * block - prompt
    assert answers[0][:same] == answers[1][:same]


SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.0, "seed": 3, "top_k": 4, "top_p": 0.8},
    {"presence_penalty": 1.5, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"min_tokens": 14, "logit_bias": {1: 5.0}},
    {"logprobs": 2},
]


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
@pytest.mark.parametrize("size", [2, 5])
def test_one_more_block_behind_never_changes_a_token_in_front(
    size: int, sampling: dict[str, Any]
) -> None:
    """A block that opens behind a whole one has the noise, the penalties and the
    trajectory of a block alone."""
    alone, several = (Desk("block-causal") for _ in range(2))
    for seed in range(6):
        prompt = [3 + (seed * k) % 13 for k in range(1, 4 + seed)]
        fields = {"algorithm": "threshold", "threshold": 0.5, "return_trajectory": True}
        params = {**sampling, "max_tokens": 21}
        buffer = {"buffer_size": size, "add_block_threshold": 1.0}
        one = alone.add("a", prompt, fields, **params)
        other = several.add("a", prompt, {**fields, **buffer}, **params)
        found = [watch(alone, seed), watch(several, seed)]
        assert one.answer == other.answer
        assert found[0] == found[1]


def watch(desk: Desk, seed: int) -> list[Any]:
    """All that a request is told with its tokens."""
    told: list[Any] = []
    for step in desk.run(TableLogits(seed)):
        told += desk.sampler.take_report().trajectories.get("a", [])
        logprobs = step.output.logprobs_tensors
        if logprobs is not None:
            told += logprobs.logprobs.tolist()
    return told


def test_blocks_before_a_foreign_page_keep_their_place() -> None:
    """A hit that goes past the front block would leave the last one without rows."""
    block = 4
    task = replace(random_task(77, block), prompt=[5, 6, 7, 8, 9], gen_length=30)
    task.wishes = replace(
        task.wishes, size=4, add_block=0.25, threshold=0.3, edit_threshold=None
    )
    expected, _ = task.expected()
    for whole_blocks in (False, True):
        desk = Desk("block-causal", block=block)
        desk.slots.canvas.whole_blocks = whole_blocks
        request = desk.add("r0", task.prompt, task.fields, max_tokens=30)
        assert 2 * block + 30 < MAX_LEN
        while desk.running:
            logits = OfRequests(desk, {request.slot: task.logits})
            desk.step(logits)
            if desk.running and request.known >= request.computed + 2 * block:
                hit = request.known // block * block
                desk.preempt("r0")
                request.computed = hit
        assert request.answer == expected


@pytest.mark.parametrize("whole_blocks", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_request_of_one_block_is_the_same_beside_buffers(
    rule: str, whole_blocks: bool
) -> None:
    """Its block would be another one of the batch's, or the last of a longer row."""
    answers = []
    for beside in (False, True):
        desk = Desk("moving")
        desk.slots.canvas.whole_blocks = whole_blocks
        if beside:
            for name, size in (("a", 4), ("b", 2)):
                fields = {"buffer_size": size, "threshold": 0.4}
                desk.add(name, [5] * 6, fields, max_tokens=30)
        one = desk.add("one", [6, 7, 8], {"algorithm": rule}, max_tokens=14, seed=3)
        logits = TableLogits(5)
        while one.name in desk.running:
            desk.step(logits)
        answers.append(one.answer)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("edits", [False, True])
def test_drafts_show_all_blocks_in_flight(edits: bool) -> None:
    """A page that draws them would show the front block alone."""
    desk, block = Desk("block-causal"), 4
    fields: dict[str, Any] = {"buffer_size": 3, "threshold": 0.3, "stream_drafts": True}
    fields["return_trajectory"] = True
    if edits:
        fields |= {"algorithm": "joint_threshold", "edit_threshold": 0.2}
    request = desk.add("a", [5, 6, 7, 8, 9], fields, max_tokens=23)
    wide, behind = 0, 0
    trajectory: list[int] = []
    while desk.running:
        known, span = request.known, request.span()
        desk.step(TableLogits(3, 1.0))
        report = desk.sampler.take_report()
        trajectory += report.trajectories["a"]
        if not span.canvas:
            continue
        draft = report.drafts["a"]
        assert draft.start == request.known
        assert draft.start + len(draft.tokens) == span.end
        first = request.plan.grid.end_of(request.known)
        ends = [*range(first, span.end + 1, block)]
        assert draft.block_ends == (ends if draft.tokens else [])
        assert all(known <= place < span.end for place in draft.changed)
        shown = dict(enumerate(draft.tokens, draft.start))
        assert all(shown.get(place) != -1 for place in draft.changed)
        wide = max(wide, span.end - known)
        front = request.plan.grid.start_of(known)
        behind += any(place >= front + block for place in draft.changed)
    assert wide > 2 * block and behind > 3
    assert len(trajectory) == 23
