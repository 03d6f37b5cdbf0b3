"""D2F on the worker: against a plain description, and beside full attention."""

from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
import torch

from tests.reference.d2f_generate import D2FWishes, Units, generate
from tests.worker.desk import MASK, MAX_LEN, VOCAB, Desk, Running, Step, TableLogits
from tests.worker.wishes import a_prompt, wishes
from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.worker.canvas_batch import CanvasBatch

FAMILIES = ("full", "shifted")
Task = tuple[list[int], int, D2FWishes]
"""A prompt, the length of its answer, and how it is decoded."""


@dataclass
class SeenLogits:
    """Made up from what a row sees: its unit, and those before it."""

    seed: int
    sharpness: float

    def row(self, position: int, seen: list[int]) -> list[float]:
        draw = Random(f"{self.seed} {position} {seen}")
        row = [draw.gauss(0, self.sharpness) for _ in range(VOCAB)]
        row[MASK] = float("-inf")
        return row

    def forward(self, ids: torch.Tensor, start: int, units: Units) -> torch.Tensor:
        """For the reference."""
        before = units.update(0, start, ids.unsqueeze(1), ids)[1].tolist()
        rows = range(start, start + len(ids))
        return torch.tensor([self.row(position, before) for position in rows])


class OfRequests:
    """Those of D2F requests by name, for a desk; others have a table."""

    def __init__(self, desk: Desk, own: dict[str, SeenLogits]) -> None:
        self.desk, self.own, self.table = desk, own, TableLogits(5)

    def __call__(self, batch: CanvasBatch, rows: int) -> torch.Tensor:
        values = self.table(batch, rows)
        slots = {request.slot: request for request in self.desk.running.values()}
        places = batch.position[batch.cell].tolist()
        for row, (index, position) in enumerate(
            zip(batch.request.tolist(), places, strict=True)
        ):
            request = slots[int(batch.spans.slot[index])]
            if request.name not in self.own:
                continue
            seen = batch.sequence(index, self.desk.all_token_ids)
            seen = seen.masked_fill(seen < 0, MASK).tolist()
            place = position - self.desk.slots.layout.shift
            seen = seen[: unit_end(request, place)]
            values[row] = torch.tensor(self.own[request.name].row(place, seen))
        return values


def unit_end(request: Running, position: int) -> int:
    """One past what a position sees."""
    grid = request.plan.grid
    return grid.origin if position < grid.origin else grid.end_of(position)


def a_task(rng: Random) -> Task:
    block = rng.randint(1, 7)
    prompt, length = a_prompt(rng, 20), rng.randint(1, 30)
    thresholds = rng.choice((0.0, 0.3, 0.6, 1.0)), rng.choice((0.1, 0.3, 0.6, 1.0))
    semi_complete = rng.choice((0.1, 0.4, 0.9, 1.0))
    return prompt, length, D2FWishes(block, *thresholds, semi_complete)


def start(desk: Desk, name: str, task: Task, **asked: Any) -> Running:
    prompt, length, how = task
    fields = {
        "algorithm": "d2f",
        "block_length": how.block,
        "threshold": how.threshold,
        "add_block_threshold": how.add_block,
        "semi_complete_threshold": how.semi_complete,
    }
    return desk.add(name, prompt, fields, max_tokens=length, **asked)


def check(
    family: str, seed: int, preempts: bool = False, whole_blocks: bool = False
) -> int:
    """Some D2F requests, others beside them; returns how many blocks shared a step."""
    rng = Random(f"{family} {seed}")
    desk = Desk(family, slots=10)
    desk.slots.canvas.whole_blocks = whole_blocks
    tasks = {f"d{number}": a_task(rng) for number in range(3)}
    own = {name: SeenLogits(seed, rng.choice((1.0, 3.0))) for name in tasks}
    beside = [
        (f"o{number}", a_prompt(rng), wishes(rng, family), rng.randint(1, 20))
        for number in range(3)
    ]
    logits, steps, most = OfRequests(desk, own), dict.fromkeys(tasks, 0), 0
    started = {name: start(desk, name, task) for name, task in tasks.items()}
    others = {n: desk.add(n, p, dllm, max_tokens=m) for n, p, dllm, m in beside}
    while desk.running:
        for name in desk.running.keys() & tasks.keys():
            steps[name] += 1
        batch = desk.step(logits).batch
        if batch.spans.rows is not None:
            most = max(most, *batch.spans.rows.sizes_np)
        if preempts and desk.running and rng.random() < 0.4:
            desk.preempt(rng.choice([*desk.running]))
    for name, (prompt, length, how) in tasks.items():
        forward, shift = own[name].forward, desk.slots.layout.shift
        request = (prompt, length, how)
        tokens, nfe = generate(forward, *request, MASK, shift, max_len=MAX_LEN)
        assert started[name].answer == tokens, (family, seed, name)
        assert steps[name] == nfe
    for name, prompt, dllm, length in beside:
        alone = Desk(family, slots=10)
        expected = alone.add(name, prompt, dllm, max_tokens=length)
        alone.run(TableLogits(5))
        assert others[name].answer == expected.answer
    return most


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("family", FAMILIES)
def test_requests_of_both_kinds_are_answered_as_alone(family: str, seed: int) -> None:
    """A row of one request would be another one's block, or see what it must not."""
    assert check(family, seed) >= 2


@pytest.mark.parametrize("seed", range(20, 26))
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_whole_blocks_answer_the_same(family: str, seed: int) -> None:
    """On a GPU logits are made of whole blocks, open or not."""
    check(family, seed, whole_blocks=True)


@pytest.mark.parametrize("seed", range(30, 38))
@pytest.mark.parametrize("family", FAMILIES)
def test_open_blocks_survive_preemption(family: str, seed: int) -> None:
    """Blocks that open again from masks are decoded in other steps."""
    check(family, seed, preempts=True, whole_blocks=seed % 2 == 0)


def seen_keys(desk: Desk, step: Step) -> list[int]:
    """How many keys each token of a step sees."""
    layout = desk.slots.layout
    rows = layout.attention_rows(step.input_batch, len(step.spans), step.spans)
    lengths = rows.query_start.diff().tolist()
    keys = rows.seq_lens.tolist()
    assert rows.max_query_len == max(lengths) and rows.max_seq_len >= max(keys)
    assert rows.num_rows <= layout.max_rows(desk.config, 10, len(step.token_ids))
    return [k for k, length in zip(keys, lengths, strict=True) for _ in range(length)]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_sees_nothing_of_its_answer(family: str, beside: bool) -> None:
    """The adapters are trained with keys of a prompt that know no answer."""
    rng = Random(f"{family} {beside}")
    desk = Desk(family, slots=10)
    for number in range(3):
        start(desk, f"d{number}", a_task(rng))
    if beside:
        desk.add("o", a_prompt(rng), {"block_length": 5, "cache": "dual"})
        desk.add("g", a_prompt(rng), {"cfg_scale": 1.5, "cache": "prefix"})
    logits = TableLogits(3)
    while desk.running.keys() & {"d0", "d1", "d2"}:
        requests = list(desk.running.values())
        step = desk.step(logits)
        seen, first = seen_keys(desk, step), 0
        for request, span in zip(requests, step.planned, strict=True):
            if isinstance(request.plan, AfterPrompt):
                positions = range(span.start, span.end)
                ends = [min(unit_end(request, p), span.end) for p in positions]
                assert seen[first : first + span.length] == ends
            elif not span.branch:
                assert set(seen[first : first + span.length]) == {request.plan.end}
            first += span.length
        assert first == len(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_forwards_no_more_than_it_may_open(family: str) -> None:
    """Masks that nothing sees cost as much as tokens."""
    desk = Desk(family)
    how = D2FWishes(block=4, threshold=1.0, add_block=0.5, semi_complete=1.0)
    request = start(desk, "a", ([5, 6, 7, 8, 9], 24, how))
    repeats, lengths = desk.slots.layout.shift, []
    while desk.running:
        lengths.append(desk.step(TableLogits(1)).planned[0].length)
    assert lengths[0] == 5 + 4
    assert max(lengths[1:]) <= 3 * 4 + repeats
    assert len(request.answer) == 24


def test_a_slot_of_one_kind_serves_the_other_afterwards() -> None:
    """Its rows would be laid out as those of the former request."""
    rng = Random(0)
    for family in FAMILIES:
        desk, fresh = Desk(family, slots=1), Desk(family, slots=1)
        guided = {"cfg_scale": 1.5, "cache": "dual", "suffix_token_ids": [3, 4]}
        for _ in range(2):
            start(desk, "d", a_task(rng))
            desk.run(TableLogits(1))
            for fields in (guided, {"block_length": 3}):
                got = desk.add("o", [5, 6, 7], fields)
                wanted = fresh.add("o", [5, 6, 7], fields)
                desk.run(TableLogits(2))
                fresh.run(TableLogits(2))
                assert got.answer == wanted.answer


@pytest.mark.parametrize("family", FAMILIES)
def test_all_blocks_in_flight_are_told(family: str) -> None:
    """A page that draws drafts would show the front block alone, and a trajectory or
    logprobs of a later block would be another one's."""
    desk, rng = Desk(family), Random(1)
    task = ([5, 6, 7], 21, D2FWishes(4, 0.3, 0.25, 0.25))
    request = start(desk, "a", task, logprobs=2)
    slot = request.slot
    desk.slots.telling.traced.add(slot)
    desk.slots.telling.watched.add(slot)
    start(desk, "b", a_task(rng))
    logits, trajectory, logprobs, most = TableLogits(2), [], [], 0
    while "a" in desk.running:
        known = request.known
        step = desk.step(logits)
        report = desk.sampler.take_report()
        trajectory += report.trajectories["a"]
        handed = step.output.logprobs_tensors
        assert handed is not None
        logprobs += handed.logprob_token_ids[:, 0].tolist()
        blocks = step.batch.blocks_of(0)
        most = max(most, len(blocks))
        draft = report.drafts["a"]
        assert draft.start == request.known
        assert len(draft.tokens) == step.planned[0].end - request.known
        assert all(place >= known for place in draft.changed)
        assert report.marks["a"] == desk.slots.buffers.opened[slot]
    assert logprobs == request.answer and len(trajectory) == 21
    assert most >= 3
