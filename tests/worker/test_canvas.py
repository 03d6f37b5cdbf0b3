"""The block of every slot: what a step reads, what is stored, and whose it is."""

import random

import pytest
import torch

from vllm_dllm.decoding.registry import RULES, get_rule
from vllm_dllm.request import DllmParams
from vllm_dllm.worker.canvas import Canvas, CanvasBatch

SLOTS, BLOCK, MASK = 5, 4, 99
CPU = torch.device("cpu")


def new_canvas() -> Canvas:
    return Canvas(SLOTS, BLOCK, MASK, CPU)


def add(
    canvas: Canvas, name: str, slot: int, rule: str = "threshold", **fields: object
) -> None:
    params = DllmParams(**{"algorithm": rule, "steps": 4, **fields})
    canvas.add_request(name, slot, params, max_len=50)


def gather(
    canvas: Canvas, slots: list[int], known: list[int], active: list[bool] | None = None
) -> CanvasBatch:
    return canvas.gather(
        torch.tensor(slots),
        torch.tensor(known),
        torch.tensor([True] * len(slots) if active is None else active),
    )


def take_step(
    canvas: Canvas,
    slots: list[int],
    known: list[int],
    writes: list[dict[int, int]],
    finished: list[bool] | None = None,
    active: list[bool] | None = None,
) -> None:
    """Write column -> token of each request."""
    batch = gather(canvas, slots, known, active)
    where = torch.zeros(len(slots), BLOCK, dtype=torch.bool)
    tokens = torch.full((len(slots), BLOCK), 77)  # must not be read where not written
    for index, row in enumerate(writes):
        for column, token in row.items():
            where[index, column], tokens[index, column] = True, token
    batch.write(where, tokens)
    canvas.scatter(batch, torch.tensor(finished or [False] * len(slots)))


def state(canvas: Canvas, slot: int) -> tuple[list[int], list[int], int, int]:
    return (
        canvas.tokens[slot].tolist(),
        canvas.decided_at[slot].tolist(),
        int(canvas.step[slot]),
        int(canvas.post_steps[slot]),
    )


FRESH = ([MASK] * BLOCK, [0] * BLOCK, 0, 0)


def test_a_new_request_has_nothing_but_masks() -> None:
    """Zeros would be taken for tokens that were decoded already."""
    canvas = new_canvas()
    add(canvas, "a", 2)
    assert state(canvas, 2) == FRESH
    batch = gather(canvas, [2], [8])
    assert batch.masked.all() and not batch.editable.any()
    assert batch.step.tolist() == batch.post_steps.tolist() == [0]


@pytest.mark.parametrize("seed", range(10))
def test_masked_and_editable_partition_the_canvas(seed: int) -> None:
    """A position in neither is never decoded; one of the prompt would be changed."""
    rng = random.Random(seed)
    canvas = new_canvas()
    for slot in range(SLOTS):
        add(canvas, str(slot), slot, rng.choice(["threshold", "joint_threshold"]))
        tokens = [rng.choice([MASK, rng.randrange(90)]) for _ in range(BLOCK)]
        canvas.tokens[slot] = torch.tensor(tokens)
    slots = rng.sample(range(SLOTS), 4)
    known = [rng.randrange(20) for _ in slots]
    active = [rng.random() < 0.8 for _ in slots]
    batch = gather(canvas, slots, known, active)
    cells = list(zip(*(part.tolist() for part in batch.cell), strict=True))
    assert batch.first.tolist() == [length % BLOCK for length in known]
    wanted = []
    for index, slot in enumerate(slots):
        first = known[index] % BLOCK
        start = known[index] - first
        assert batch.position[index].tolist() == list(range(start, start + BLOCK))
        for column in range(BLOCK):
            inside = active[index] and column >= first
            is_mask = canvas.tokens[slot, column] == MASK
            assert batch.masked[index, column] == (inside and is_mask)
            assert batch.editable[index, column] == (inside and not is_mask)
            revised = canvas.revises[slot] and batch.editable[index, column]
            if batch.masked[index, column] or revised:
                wanted.append((index, column))
    assert cells == wanted


def test_mask_ids_among_known_tokens_are_no_masks() -> None:
    """A prompt may contain the mask token's text; it would be decoded over."""
    canvas = new_canvas()
    add(canvas, "a", 1)
    canvas.tokens[1] = torch.tensor([MASK, MASK, 5, MASK])
    known = torch.full((SLOTS, 20), MASK)
    known[1, :6] = torch.tensor([1, MASK, 3, MASK, 5, MASK])
    batch = gather(canvas, [1], [6])
    assert batch.masked.tolist() == [[False, False, False, True]]
    assert batch.editable.tolist() == [[False, False, True, False]]
    assert batch.sequence(0, known).tolist() == [1, MASK, 3, MASK, 5, MASK, 5, -1]


def test_a_step_is_stored_in_its_requests_slots_alone() -> None:
    """A token in a neighbour's block is answered by the neighbour."""
    canvas = new_canvas()
    for slot in range(SLOTS):
        add(canvas, str(slot), slot)
    take_step(canvas, [3, 0], [8, 6], [{1: 11, 3: 13}, {2: 20}])
    take_step(canvas, [0, 3], [6, 8], [{3: 21}, {0: 10}])
    assert state(canvas, 3) == ([10, 11, MASK, 13], [1, 0, 0, 0], 2, 0)
    assert state(canvas, 0) == ([MASK, MASK, 20, 21], [0, 0, 0, 1], 2, 0)
    for slot in (1, 2, 4):
        assert state(canvas, slot) == FRESH


def test_a_revised_token_was_decided_when_it_was_revised() -> None:
    """Its logprobs and its step would be those of a token that is gone."""
    canvas = new_canvas()
    add(canvas, "a", 0, "joint_threshold")
    take_step(canvas, [0], [8], [{0: 1, 1: 2, 2: 3, 3: 4}])
    take_step(canvas, [0], [8], [{2: 9}])
    assert state(canvas, 0) == ([1, 2, 9, 4], [0, 0, 1, 0], 2, 1)
    batch = gather(canvas, [0], [8])
    assert batch.post_steps.tolist() == [2]
    assert batch.cell[1].tolist() == [0, 1, 2, 3]


def test_a_finished_block_makes_room_for_the_next() -> None:
    """The next block would begin decoded, with the tokens of the last."""
    canvas = new_canvas()
    add(canvas, "a", 0)
    add(canvas, "b", 1)
    writes = [{c: c for c in range(BLOCK)}, {0: 7}]
    take_step(canvas, [0, 1], [8, 8], writes, finished=[True, False])
    assert (canvas.tokens[0].tolist(), int(canvas.step[0])) == ([MASK] * BLOCK, 0)
    assert int(canvas.post_steps[0]) == 0
    assert state(canvas, 1) == ([7, MASK, MASK, MASK], [0] * BLOCK, 1, 0)
    batch = gather(canvas, [0], [12])
    assert batch.masked.all()


def test_a_prefill_chunk_takes_no_step() -> None:
    """A long prompt would use up the steps of its first block."""
    canvas = new_canvas()
    add(canvas, "a", 0)
    add(canvas, "b", 1)
    take_step(canvas, [0, 1], [9, 8], [{}, {0: 7}], active=[False, True])
    assert state(canvas, 0) == FRESH
    assert state(canvas, 1)[2] == 1


def test_a_suspended_request_goes_on_in_another_slot() -> None:
    """Decoded again in another order, a block gets other tokens."""
    canvas = new_canvas()
    add(canvas, "a", 0, return_trajectory=True)
    take_step(canvas, [0], [8], [{3: 5}])
    take_step(canvas, [0], [8], [{1: 6}])
    before = state(canvas, 0)
    canvas.suspend("a", 0)
    add(canvas, "b", 0)  # takes the slot
    take_step(canvas, [0], [4], [{0: 1, 1: 2}])
    add(canvas, "a", 4, return_trajectory=True)
    assert state(canvas, 4) == before == ([MASK, 6, MASK, 5], [0, 1, 0, 0], 2, 0)
    assert canvas.traced == {4}
    add(canvas, "a", 3)  # a state is given back once
    assert state(canvas, 3) == FRESH


def test_a_forgotten_request_leaves_nothing_to_one_of_its_name() -> None:
    """A client that uses an id again would get tokens of the first request."""
    canvas = new_canvas()
    add(canvas, "a", 0)
    take_step(canvas, [0], [8], [{3: 5}])
    canvas.suspend("a", 0)
    canvas.forget("a")
    canvas.forget("never seen")
    add(canvas, "a", 1)
    assert state(canvas, 1) == FRESH
    assert not canvas._suspended


@pytest.mark.parametrize("rule", RULES)
def test_a_slot_keeps_nothing_of_its_former_request(rule: str) -> None:
    """A request would be decoded by the parameters of another."""
    canvas, fresh = new_canvas(), new_canvas()
    add(canvas, "old", 2, "joint_threshold", threshold=0.1, return_trajectory=True)
    take_step(canvas, [2], [9], [{1: 1, 2: 2, 3: 3}])
    take_step(canvas, [2], [9], [{2: 8}])
    for either in (canvas, fresh):
        add(either, "new", 2, rule, steps=3, max_nfe=7)
    assert state(canvas, 2) == FRESH
    assert canvas.algorithm[2] == rule
    assert bool(canvas.revises[2]) == get_rule(rule).revises
    assert canvas.traced == set()
    for name in get_rule(rule).parameters:
        assert canvas.params[name][2] == fresh.params[name][2]
    assert canvas.max_len[2] == 50


def test_parameters_arrive_as_they_were_asked_for() -> None:
    """A threshold in an integer tensor is 0."""
    canvas = new_canvas()
    add(canvas, "a", 1, "threshold", threshold=0.375, steps=1_000_000)
    add(canvas, "b", 2, "joint_threshold", edit_threshold=0.25, max_post_steps=0)
    assert canvas.params["threshold"][1].item() == 0.375
    assert canvas.params["steps"][1].item() == 1_000_000
    assert canvas.params["edit_threshold"][2].item() == 0.25
    assert canvas.params["max_post_steps"][2].item() == 0
    assert canvas.params["threshold"][2].item() == pytest.approx(0.9)


def test_what_a_rule_remembers_goes_with_its_request() -> None:
    """After preemption a rule with a memory would decide otherwise."""
    canvas = new_canvas()
    add(canvas, "a", 0, "credit")
    assert canvas.history is not None
    shape = (BLOCK, BLOCK)
    ids, values = torch.arange(16).view(shape), torch.rand(shape)
    canvas.history[0][0], canvas.history[1][0] = ids, values
    take_step(canvas, [0], [8], [{0: 1}])
    canvas.suspend("a", 0)
    canvas.history[0][0], canvas.history[1][0] = 0, 0  # by the slot's next request
    add(canvas, "a", 3, "credit")
    assert torch.equal(canvas.history[0][3], ids)
    assert torch.equal(canvas.history[1][3], values)
