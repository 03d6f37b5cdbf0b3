"""A step as the layout has it, against the plans and plain lists."""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.worker.desk import MASK, Desk, Running, Step, TableLogits
from tests.worker.wishes import a_prompt, wishes
from vllm_dllm.plans.base import Plan, Span
from vllm_dllm.plans.full_attention import FullAttention

GAP = -1
"""Between the branches of a refresh: nobody reads what is computed there."""


@dataclass
class Before:
    """What is known of a request before a step."""

    request: Running
    tokens: list[int]
    """Known ones."""
    block: list[int]
    """Its row of the canvas."""


def before_step(desk: Desk) -> dict[str, Before]:
    tokens = desk.slots.canvas.tokens.values
    return {
        name: Before(
            request, [*request.prompt, *request.answer], tokens[request.slot].tolist()
        )
        for name, request in desk.running.items()
    }


def placed(span: Span) -> list[tuple[int, int]]:
    """Position and page position of each token of a span."""
    positions = range(span.start, span.end)
    first = [(p, p) for p in positions]
    if not span.branch:
        return first
    gap = [(GAP, p) for p in range(span.end, span.branch)] if span.start == 0 else []
    return first + gap + [(p, span.branch + p) for p in positions]


def is_unconditional(span: Span, page: int) -> bool:
    return 0 < span.branch <= page


def shown_of(before: Before, span: Span) -> int:
    if span.canvas or not isinstance(before.request.plan, FullAttention):
        return span.known
    return before.request.plan.grid.start_of(span.known)


def token_at(before: Before, span: Span, position: int, page: int) -> int:
    """What the model is given there."""
    request, grid = before.request, before.request.plan.grid
    fields = request.params.extra_args or {}
    if position >= grid.end and "dllm_suffix_token_ids" in fields:
        token = fields["dllm_suffix_token_ids"][position - grid.end]
    elif position >= grid.origin and "dllm_canvas_token_ids" in fields:
        token = fields["dllm_canvas_token_ids"][position - grid.origin]
    else:
        token = -1
    if is_unconditional(span, page) and (position < grid.origin or token >= 0):
        return MASK
    if token >= 0:
        return int(token)
    if position < shown_of(before, span):
        return before.tokens[position]
    start = grid.start_of(span.known)
    if span.canvas and position < grid.end_of(span.known):
        return before.block[position - start]
    return MASK


def check_step(desk: Desk, step: Step, before: list[Before]) -> None:
    spans = step.spans
    plans = [one.request.plan for one in before]
    grids = [plan.grid for plan in plans]
    each = list(zip(before, step.planned, strict=True))

    def is_list(values: torch.Tensor, expected: list[int]) -> None:
        assert values.dtype == torch.int64 and values.tolist() == expected

    starts = [
        g.start_of(span.known) for g, span in zip(grids, step.planned, strict=True)
    ]
    ends = [g.end_of(span.known) for g, span in zip(grids, step.planned, strict=True)]
    decides = [span.canvas > 0 for span in step.planned]
    is_list(spans.slot, [one.request.slot for one in before])
    assert spans.slot_np.tolist() == spans.slot.tolist()
    is_list(spans.start, [span.start for span in step.planned])
    is_list(spans.length, [span.length for span in step.planned])
    is_list(spans.known, [span.known for span in step.planned])
    is_list(spans.shown, [shown_of(*one) for one in each])
    is_list(spans.block_start, starts)
    is_list(spans.block_length, [e - s for s, e in zip(starts, ends, strict=True)])
    assert spans.decides.tolist() == spans.decides_np.tolist() == decides
    assert spans.width == max(grid.block for grid in grids)
    assert spans.rows_np.tolist() == [
        min(grid.block, span.end - span.start)
        for grid, span in zip(grids, step.planned, strict=True)
    ]
    places = [(i, *at) for i, span in enumerate(step.planned) for at in placed(span)]
    is_list(spans.owner, [owner for owner, _, _ in places])
    pages = [page for _, _, page in places]
    assert step.input_batch.positions.tolist() == pages
    for token, position, (owner, wanted, page) in zip(
        step.token_ids.tolist(), spans.position.tolist(), places, strict=True
    ):
        if wanted != GAP:
            assert position == wanted
            assert token == token_at(*each[owner], wanted, page)
    check_first_row(desk, step, plans)
    check_logit_rows(desk, step, places)


def check_first_row(desk: Desk, step: Step, plans: list[Any]) -> None:
    if desk.config.facts.attention in ("block_causal", "full") and not shift_of(desk):
        assert step.spans.first_row is None and step.spans.leads is None
        return
    assert step.spans.first_row is not None and step.spans.leads is not None
    assert step.spans.first_row.tolist() == [
        span.start + shift_of(desk, span) for span in step.planned
    ]
    assert step.spans.leads.tolist() == [
        leads(plan, span) for plan, span in zip(plans, step.planned, strict=True)
    ]


def shift_of(desk: Desk, span: Span | None = None) -> int:
    """How many rows before its own a position is predicted."""
    if desk.config.facts.attention == "seeded_causal" and span is not None:
        return int(span.canvas > 0 and span.is_known)
    return int(desk.config.facts.shifted_logits)


def leads(plan: Plan, span: Span) -> bool:
    """Whether the first position of the block is decided, and nothing else."""
    if isinstance(plan, FullAttention):
        return plan.cache != "none" and span.start == 0
    return span.canvas > 0 and span.end == span.known


def check_logit_rows(
    desk: Desk, step: Step, places: list[tuple[int, int, int]]
) -> None:
    """The rows of each cell: of its own request, branch and position."""
    cells = list(zip(*(part.tolist() for part in step.batch.cell), strict=True))
    branches = [(cell, False) for cell in cells]
    guided = [cell for cell in cells if step.planned[cell[0]].branch]
    branches += [(cell, True) for cell in guided]
    assert (step.spans.branches is not None) == any(s.branch for s in step.planned)
    for ((index, column), second), row in zip(
        branches, step.rows.tolist(), strict=True
    ):
        owner, position, page = places[row]
        assert owner == index
        shift = shift_of(desk, step.planned[index])
        assert position == int(step.spans.block_start[index]) + column - shift
        assert is_unconditional(step.planned[index], page) == second


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("family", ["block-causal", "full", "shifted"])
def test_a_step_is_what_the_plans_say(family: str, seed: int) -> None:
    """Scheduler and worker count apart; one token off, and a request reads keys of
    another position, or another request's tokens."""
    rng = random.Random(f"{family} {seed}")
    desk = Desk(family)
    if not desk.config.facts.full_attention:
        longest = 4 if desk.config.facts.fixed_block else 9
        desk.budget = rng.choice([longest, 2 * longest, 100])
    logits, kinds = TableLogits(seed), set()
    for name in "abcd":
        prompt, max_tokens = a_prompt(rng, 20), rng.randint(1, 16)
        fields = wishes(rng, family, max_tokens)
        desk.add(name, prompt, fields, max_tokens=max_tokens)
    while desk.running:
        names = rng.sample(list(desk.running), rng.randint(1, len(desk.running)))
        before = before_step(desk)
        step = desk.step(logits, *names)
        check_step(desk, step, [before[name] for name in names])
        kinds |= {span.canvas > 0 for span in step.planned}
        if desk.running and rng.random() < 0.2:
            desk.preempt(rng.choice(list(desk.running)))
    assert True in kinds


@pytest.mark.parametrize("family", ["full", "shifted"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_lost_keys_are_made_again_as_they_were(
    cache: str, cfg_scale: float, family: str
) -> None:
    """The refresh saw nothing but masks in its block. From the tokens that were decided
    since, other keys would be made, and other tokens follow."""
    desk = Desk(family)
    fields = {"cache": cache, "cfg_scale": cfg_scale, "block_length": 6}
    fields |= {"algorithm": "sequential", "suffix_token_ids": [7, 8]}
    a = desk.add("a", [5, 6, 7], fields, max_tokens=12)
    refresh = desk.step(TableLogits(0))
    desk.step(TableLogits(0))
    assert a.known > 3 and a.computed == 3
    desk.preempt("a")
    before = before_step(desk)
    again = desk.step(TableLogits(0))
    assert [span.canvas for span in again.planned] == [0]
    check_step(desk, again, [before["a"]])
    read = [at != GAP for span in again.planned for at, _ in placed(span)]
    wanted = refresh.token_ids[torch.tensor(read)]
    assert torch.equal(again.token_ids[torch.tensor(read)], wanted)
    assert not len(again.rows) and not int(again.output.num_sampled)
    before = before_step(desk)
    check_step(desk, desk.step(TableLogits(0)), [before["a"]])


@pytest.mark.parametrize("family", ["full", "shifted"])
def test_requests_of_all_kinds_are_laid_out_beside_each_other(family: str) -> None:
    """Guidance of one request moves the tokens of all that follow in the batch."""
    desk, rng = Desk(family), random.Random(0)
    for index, cache in enumerate(("none", "prefix", "dual")):
        for name, more in (
            ("plain", {}),
            ("guided", {"cfg_scale": 0.5, "suffix_token_ids": a_prompt(rng, 5)}),
        ):
            fields = {"cache": cache, "block_length": 2 + index, **more}
            desk.add(f"{name} {cache}", a_prompt(rng), fields, max_tokens=9)
    seen = set()
    while desk.running:
        before = list(before_step(desk).values())
        step = desk.step(TableLogits(1))
        check_step(desk, step, before)
        seen |= {(span.branch > 0, span.start > 0) for span in step.planned}
    assert len(seen) == 4
