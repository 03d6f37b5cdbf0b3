"""The block of every slot: what a step reads, what is stored, and whose it is."""

import random

import numpy as np
import pytest
import torch

from tests.worker.blocks import add_full, fresh, gather, state, take_step
from tests.worker.desk import CPU, MASK, Desk, Running
from vllm_dllm.decoding.registry import RULES, get_rule
from vllm_dllm.worker.canvas import _cells_of_blocks
from vllm_dllm.worker.canvas_batch import CanvasBatch

SLOTS, BLOCK = 5, 4


def new_desk(family: str = "block-causal") -> Desk:
    return Desk(family, SLOTS, BLOCK)


def add(
    desk: Desk, name: str, slot: int, rule: str = "threshold", **dllm: object
) -> Running:
    return desk.add(name, [5] * 8, {"algorithm": rule, **dllm}, slot)


def cells_of(batch: CanvasBatch) -> list[tuple[int, int]]:
    return list(zip(*(part.tolist() for part in batch.cell), strict=True))


def test_a_new_request_has_nothing_but_masks() -> None:
    """Zeros would be taken for tokens that were decoded already."""
    desk = new_desk()
    a = add(desk, "a", 2)
    assert state(desk, 2) == fresh()
    batch = gather(desk, [a], [8])
    assert batch.masked.all() and not batch.editable.any()
    assert batch.step.tolist() == batch.post_steps.tolist() == [0]


@pytest.mark.parametrize("seed", range(10))
def test_masked_and_editable_partition_the_canvas(seed: int) -> None:
    """A position in neither is never decoded; one of the prompt would be changed."""
    rng = random.Random(seed)
    desk = new_desk()
    table, requests = desk.slots.canvas.tokens.values, []
    for slot in range(SLOTS):
        rule = rng.choice(["threshold", "joint_threshold"])
        requests.append(add(desk, str(slot), slot, rule))
        tokens = [rng.choice([MASK, rng.randrange(MASK)]) for _ in range(BLOCK)]
        table[slot] = torch.tensor(tokens)
    some = rng.sample(requests, 4)
    known = [rng.randrange(20) for _ in some]
    active = [rng.random() < 0.8 for _ in some]
    batch = gather(desk, some, known, active)
    assert batch.first.tolist() == [length % BLOCK for length in known]
    assert batch.length.tolist() == [BLOCK] * len(some)
    wanted = []
    for index, request in enumerate(some):
        first = known[index] % BLOCK
        start = known[index] - first
        assert batch.position[index].tolist() == list(range(start, start + BLOCK))
        for column in range(BLOCK):
            inside = active[index] and column >= first
            is_mask = table[request.slot, column] == MASK
            assert batch.masked[index, column] == (inside and is_mask)
            assert batch.editable[index, column] == (inside and not is_mask)
            revises = desk.slots.rules.revises[request.slot]
            revised = revises and batch.editable[index, column]
            if batch.masked[index, column] or revised:
                wanted.append((index, column))
    assert cells_of(batch) == wanted


def test_mask_ids_among_known_tokens_are_no_masks() -> None:
    """A prompt may contain the mask token's text; it would be decoded over."""
    desk = new_desk()
    a = add(desk, "a", 1)
    desk.slots.canvas.tokens.values[1] = torch.tensor([MASK, MASK, 5, MASK])
    known = torch.full((SLOTS, 20), MASK)
    known[1, :6] = torch.tensor([1, MASK, 3, MASK, 5, MASK])
    batch = gather(desk, [a], [6])
    assert batch.masked.tolist() == [[False, False, False, True]]
    assert batch.editable.tolist() == [[False, False, True, False]]
    assert batch.sequence(0, known).tolist() == [1, MASK, 3, MASK, 5, MASK, 5, -1]


def test_a_step_is_stored_in_its_requests_slots_alone() -> None:
    """A token in a neighbour's block is answered by the neighbour."""
    desk = new_desk()
    requests = [add(desk, str(slot), slot) for slot in range(SLOTS)]
    first, last = requests[0], requests[3]
    take_step(desk, [last, first], [8, 6], [{1: 11, 3: 13}, {2: 16}])
    take_step(desk, [first, last], [6, 8], [{3: 15}, {0: 10}])
    assert state(desk, 3) == ([10, 11, MASK, 13], [1, 0, 0, 0], 2, 0)
    assert state(desk, 0) == ([MASK, MASK, 16, 15], [0, 0, 0, 1], 2, 0)
    for slot in (1, 2, 4):
        assert state(desk, slot) == fresh()


def test_a_revised_token_was_decided_when_it_was_revised() -> None:
    """Its logprobs and its step would be those of a token that is gone."""
    desk = new_desk()
    a = add(desk, "a", 0, "joint_threshold")
    take_step(desk, [a], [8], [{0: 1, 1: 2, 2: 3, 3: 4}])
    take_step(desk, [a], [8], [{2: 9}])
    assert state(desk, 0) == ([1, 2, 9, 4], [0, 0, 1, 0], 2, 1)
    batch = gather(desk, [a], [8])
    assert batch.post_steps.tolist() == [2]
    assert batch.cell[1].tolist() == [0, 1, 2, 3]


def test_a_finished_block_makes_room_for_the_next() -> None:
    """The next block would begin decoded, with the tokens of the last."""
    desk = new_desk()
    a, b = add(desk, "a", 0), add(desk, "b", 1)
    writes = [{c: c for c in range(BLOCK)}, {0: 7}]
    take_step(desk, [a, b], [8, 8], writes, finished=[True, False])
    tokens, _, step, post_steps = state(desk, 0)
    assert (tokens, step, post_steps) == ([MASK] * BLOCK, 0, 0)
    assert state(desk, 1) == ([7, MASK, MASK, MASK], [0] * BLOCK, 1, 0)
    assert gather(desk, [a], [12]).masked.all()


def test_a_prefill_chunk_takes_no_step() -> None:
    """A long prompt would use up the steps of its first block."""
    desk = new_desk()
    a, b = add(desk, "a", 0), add(desk, "b", 1)
    take_step(desk, [a, b], [9, 8], [{}, {0: 7}], active=[False, True])
    assert state(desk, 0) == fresh()
    assert state(desk, 1)[2] == 1


@pytest.mark.parametrize("rule", RULES)
def test_a_slot_keeps_nothing_of_its_former_request(rule: str) -> None:
    """A request would be decoded by the parameters of another."""
    used, unused = new_desk("moving"), new_desk("moving")
    old = add(used, "old", 2, "joint_threshold", threshold=0.1, return_trajectory=True)
    take_step(used, [old], [9], [{1: 1, 2: 2, 3: 3}])
    take_step(used, [old], [9], [{2: 8}])
    own = {"steps": 3} if "steps" in get_rule(rule).parameters else {}
    for either in (used, unused):
        dllm = {"algorithm": rule, "max_nfe": 7, **own}
        either.add("new", [5] * 9, dllm, slot=2, max_tokens=41)
    assert state(used, 2) == fresh()
    slots = used.slots
    assert slots.rules.algorithm[2] == rule
    assert bool(slots.rules.revises[2]) == get_rule(rule).revises
    assert slots.telling.traced == set()
    for name in get_rule(rule).parameters:
        of_new = unused.slots.rules.parameters[name][2]
        assert slots.rules.parameters[name][2] == of_new
    assert slots.canvas.max_len[2] == 50
    assert slots.layout.block_of(torch.tensor([2]), torch.tensor([9])) == (8, BLOCK)


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_different_lengths_are_read_together(seed: int) -> None:
    """Columns of a long block would be decoded in a short one, past its end."""
    rng = random.Random(seed)
    desk, requests = new_desk("full"), []
    for slot in range(SLOTS):
        origin, length = rng.randint(1, 30), rng.randint(1, 30)
        grid = (origin, min(length, rng.randint(1, 12)), origin + length)
        rule = rng.choice(["threshold", "joint_threshold"])
        requests.append(add_full(desk, str(slot), slot, grid, algorithm=rule))
    table = desk.slots.canvas.tokens.values
    for slot in range(SLOTS):
        tokens = [rng.choice([MASK, rng.randrange(MASK)]) for _ in table[slot]]
        table[slot] = torch.tensor(tokens)
    some = rng.sample(requests, 4)
    grids = [request.plan.grid for request in some]
    known = [rng.randrange(grid.origin, grid.end) for grid in grids]
    active = [rng.random() < 0.8 for _ in some]
    batch = gather(desk, some, known, active)
    width = max(grid.block for grid in grids)
    assert batch.tokens.shape == batch.masked.shape == batch.editable.shape
    assert batch.tokens.shape == batch.decided_at.shape == (4, width)
    wanted = []
    for index, (request, grid) in enumerate(zip(some, grids, strict=True)):
        start, end = grid.start_of(known[index]), grid.end_of(known[index])
        assert int(batch.start[index]) == start
        assert int(batch.length[index]) == end - start
        assert int(batch.first[index]) == known[index] - start
        assert batch.position[index].tolist() == list(range(start, start + width))
        for column in range(width):
            inside = active[index] and known[index] <= start + column < end
            is_mask = bool(table[request.slot, column] == MASK)
            assert bool(batch.masked[index, column]) == (inside and is_mask)
            assert bool(batch.editable[index, column]) == (inside and not is_mask)
            if inside and (is_mask or desk.slots.rules.revises[request.slot]):
                wanted.append((index, column))
    assert cells_of(batch) == wanted


def test_the_sequence_of_a_short_block_ends_with_it() -> None:
    """Penalties would count what lies past the end, and bad words read it."""
    desk = new_desk("full")
    long = add_full(desk, "long", 0, (3, 9, 12))
    short = add_full(desk, "short", 1, (5, 4, 11))
    take_step(desk, [long, short], [3, 6], [{8: 1}, {3: 2}])
    known = torch.arange(SLOTS * 20).view(SLOTS, 20)
    batch = gather(desk, [long, short], [3, 6])
    assert batch.sequence(1, known).tolist() == [20, 21, 22, 23, 24, 25, -1, -1, 2]
    assert batch.sequence(0, known).tolist() == [0, 1, 2, *[-1] * 8, 1]
    desk.slots.canvas.tokens.values[1] = MASK
    batch = gather(desk, [long, short], [3, 9])  # the last block, cut at the end
    assert batch.length.tolist() == [9, 2]
    assert batch.sequence(1, known).tolist() == [*range(20, 29), -1, -1]


def test_no_block_is_past_the_end() -> None:
    """Positions past the longest request have no pages."""
    desk = new_desk("full")
    a = add_full(desk, "a", 0, (5, 8, 16))
    batch = gather(desk, [a], [13])
    assert (batch.start.tolist(), batch.length.tolist()) == ([13], [3])
    assert batch.masked.tolist() == [[True] * 3 + [False] * 5]
    take_step(desk, [a], [13], [{0: 1, 2: 3}])
    batch = gather(desk, [a], [14])
    assert batch.masked.tolist() == [[False, True] + [False] * 6]
    assert batch.editable.tolist() == [[False, False, True] + [False] * 5]


def test_a_step_without_a_mask_is_counted_by_the_blocks_own_length() -> None:
    """Masks past the end of a short block would keep it from being done."""
    desk = new_desk("full")
    a = add_full(desk, "a", 0, (5, 2, 7), algorithm="joint_threshold")
    b = add_full(desk, "b", 1, (5, 6, 11))
    take_step(desk, [a, b], [5, 5], [{0: 1, 1: 2}, {5: 3}])
    batch = gather(desk, [a, b], [5, 5])
    assert batch.post_steps.tolist() == [1, 0]


def test_a_finished_short_block_leaves_the_others_of_the_step() -> None:
    """The widths of the canvas and of the step differ, and each slot keeps its own."""
    desk = new_desk("full")
    wide = add_full(desk, "wide", 4, (3, 10, 13))
    a, b = add_full(desk, "a", 0, (5, 2, 9)), add_full(desk, "b", 1, (5, 6, 11))
    take_step(desk, [wide], [3], [{9: 8}])
    writes = [{0: 1, 1: 2}, {5: 3}]
    take_step(desk, [a, b], [5, 5], writes, finished=[True, False])
    assert state(desk, 0) == fresh(10)
    assert state(desk, 1) == ([MASK] * 5 + [3] + [MASK] * 4, [0] * 10, 1, 0)
    assert state(desk, 4) == ([MASK] * 9 + [8], [0] * 10, 1, 0)


@pytest.mark.parametrize("seed", range(10))
def test_rows_of_whole_blocks_are_the_first_columns_of_each(seed: int) -> None:
    """A row counted for the wrong request gives its logits to all that follow."""
    rng = random.Random(seed)
    rows = [rng.choice([0, 0, 1, rng.randint(1, 9)]) for _ in range(rng.randint(1, 7))]
    request, column = _cells_of_blocks(np.array(rows), CPU)
    wanted = [(i, place) for i, number in enumerate(rows) for place in range(number)]
    assert list(zip(request.tolist(), column.tolist(), strict=True)) == wanted
    assert request.dtype == column.dtype == torch.int64
