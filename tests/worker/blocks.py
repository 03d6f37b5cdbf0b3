"""Blocks of chosen slots, read and written by hand: for tests of what is kept of them.

The spans are the layout's own; the rules are not asked.
"""

from collections.abc import Sequence
from typing import Any

import torch

from tests.worker.desk import MASK, Desk, Running, batch_of
from vllm_dllm.plans.base import Span
from vllm_dllm.worker.canvas_batch import CanvasBatch

Grid = tuple[int, int, int]
"""First position of the first block, length of a block, end of the last one."""
UNWRITTEN = 17
"""A token that must not be read where none is written."""


def add_full(
    desk: Desk, name: str, slot: int, grid: Grid, asked: Any = None, **dllm: Any
) -> Running:
    """A request of a model with full attention, with these blocks."""
    origin, block, end = grid
    dllm["block_length"] = block
    if (end - origin) % block:
        # Only an infilling has a last block that is shorter.
        dllm.setdefault("suffix_token_ids", [4])
    fields = {"max_tokens": end - origin, **(asked or {})}
    request = desk.add(name, [5] * origin, dllm, slot, **fields)
    assert tuple(request.plan.grid) == grid
    return request


def planned_at(desk: Desk, request: Running, known: int, active: bool = True) -> Span:
    """The step of a request with so many known tokens; one that decides nothing is a
    chunk of its prompt."""
    full = desk.config.facts.full_attention
    request.known = known
    request.computed = 0 if full else request.plan.grid.start_of(known)
    span = request.span()
    return span if active else span._replace(canvas=0)


def input_batch_of(
    desk: Desk,
    requests: list[Running],
    known: Sequence[int],
    active: Sequence[bool] | None = None,
) -> Any:
    """The batch of vLLM's with a step of each request."""
    active = active or [True] * len(requests)
    each = zip(requests, known, active, strict=True)
    return batch_of(requests, [planned_at(desk, *one) for one in each])


def gather(
    desk: Desk,
    requests: list[Running],
    known: Sequence[int],
    active: Sequence[bool] | None = None,
) -> CanvasBatch:
    """The blocks that a step of the requests reads."""
    input_batch = input_batch_of(desk, requests, known, active)
    spans = desk.slots.layout.lay_out(input_batch, torch.tensor(known))
    return desk.sampler.gather(spans)[0]


def take_step(
    desk: Desk,
    requests: list[Running],
    known: Sequence[int],
    writes: list[dict[int, int]],
    finished: list[bool] | None = None,
    active: Sequence[bool] | None = None,
) -> None:
    """Write column -> token of each request."""
    batch = gather(desk, requests, known, active)
    where = torch.zeros_like(batch.masked)
    tokens = torch.full_like(batch.tokens, UNWRITTEN)
    for index, row in enumerate(writes):
        for column, token in row.items():
            where[index, column], tokens[index, column] = True, token
    batch.write(where, tokens)
    done = torch.tensor(finished or [False] * len(requests))
    left = torch.where(done, batch.length, batch.first)
    desk.slots.canvas.scatter(batch, left, done)


State = tuple[list[int], list[int], int, int]


def state(desk: Desk, slot: int) -> State:
    """Of its one block: tokens, the steps that decided them, steps, and those without
    a mask."""
    canvas = desk.slots.canvas
    return (
        canvas.tokens.values[slot].tolist(),
        canvas.decided_at.values[slot].tolist(),
        int(canvas.step.values[slot, 0]),
        int(canvas.post_steps.values[slot, 0]),
    )


def fresh(width: int = 4) -> State:
    return ([MASK] * width, [0] * width, 0, 0)
