"""The block of every slot: what a step reads, what is stored, and whose it is."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from tests.decodings import decoding
from vllm_dllm.decoding.registry import RULES, get_rule
from vllm_dllm.decoding.time_grid import time_grid
from vllm_dllm.request import MAX_CREDIT_BLOCK
from vllm_dllm.span import UNBOUNDED, BlockCausal, FullAttention, Grid, Plan
from vllm_dllm.worker.canvas import Canvas, CanvasBatch

SLOTS, BLOCK, MASK = 5, 4, 99
CPU = torch.device("cpu")
BLOCK_CAUSAL = BlockCausal(Grid(0, BLOCK, UNBOUNDED))


def new_canvas(full_attention: bool = False) -> Canvas:
    return Canvas(SLOTS, BLOCK, MASK, CPU, full_attention)


def add(
    canvas: Canvas,
    name: str,
    slot: int,
    rule: str = "threshold",
    plan: Plan = BLOCK_CAUSAL,
    **fields: Any,
) -> None:
    canvas.add_request(name, slot, decoding(rule, **fields), plan, max_len=50)


def full(
    origin: int, block: int, end: int, cache: str = "none", twin: int = 0
) -> FullAttention:
    return FullAttention(Grid(origin, block, end), cache, twin)


def infilling(origin: int, block: int, end: int, suffix: list[int]) -> FullAttention:
    return full(origin, block, end)._replace(suffix=len(suffix))


def gather(
    canvas: Canvas, slots: list[int], known: list[int], active: list[bool] | None = None
) -> CanvasBatch:
    return canvas.gather(
        torch.tensor(slots),
        np.array(slots),
        torch.tensor(known),
        torch.tensor([True] * len(slots) if active is None else active),
    )


def time_share(canvas: Canvas, slots: list[int], known: list[int]) -> torch.Tensor:
    return canvas.time_share(gather(canvas, slots, known), np.array(slots))


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
    where = torch.zeros_like(batch.masked)
    tokens = torch.full_like(batch.tokens, 77)  # must not be read where not written
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
    assert batch.length.tolist() == [BLOCK] * len(slots)
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
    assert canvas.block_of(torch.tensor([2]), torch.tensor([9])) == (8, BLOCK)


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


def test_a_longer_block_leaves_those_of_other_slots_as_they_are() -> None:
    """A request that comes would undo what others have decoded."""
    canvas = new_canvas(full_attention=True)
    add(canvas, "a", 0, "credit", full(7, 4, 15))
    take_step(canvas, [0], [8], [{2: 5, 3: 6}])
    take_step(canvas, [0], [8], [{1: 7}])
    assert canvas.history is not None
    ids, values = torch.arange(16).view(4, 4), torch.rand(4, 4)
    canvas.history[0][0], canvas.history[1][0] = ids, values
    add(canvas, "b", 3, "credit", plan=full(20, 11, 31))
    assert canvas.width == 11
    tokens, decided_at, step, _ = state(canvas, 0)
    assert tokens == [MASK, 7, 5, 6] + [MASK] * 7
    assert (decided_at[:4], step) == ([0, 1, 0, 0], 2)
    assert torch.equal(canvas.history[0][0, :4, :4], ids)
    assert torch.equal(canvas.history[1][0, :4, :4], values)
    assert not canvas.history[0][0, :, 4:].any()
    assert not canvas.history[1][0, :, 4:].any()
    batch = gather(canvas, [3, 0], [20, 8])
    assert batch.masked[0].all()
    assert batch.masked[1].tolist() == [False] * 11
    batch = gather(canvas, [0], [7])
    assert batch.tokens.tolist() == [[MASK, 7, 5, 6]]  # no wider than it must be
    assert batch.masked.tolist() == [[True, False, False, False]]


def test_what_rules_remember_grows_with_blocks_of_their_own_requests() -> None:
    """A table [slots, block, block] of a block of thousands is larger than the machine;
    that is why credit has a limit. Other requests have none."""
    for first, second in (("credit", "threshold"), ("threshold", "credit")):
        canvas = new_canvas(full_attention=True)
        for slot, rule in enumerate((first, second)):
            block = 4 if rule == "credit" else 3 * MAX_CREDIT_BLOCK
            add(canvas, rule, slot, rule, full(5, block, 5 + block))
        assert canvas.history is not None
        assert canvas.history[0][0].numel() <= MAX_CREDIT_BLOCK**2


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_different_lengths_are_read_together(seed: int) -> None:
    """Columns of a long block would be decoded in a short one, past its end."""
    rng = random.Random(seed)
    canvas = new_canvas(full_attention=True)
    plans = []
    for slot in range(SLOTS):
        origin, block = rng.randint(1, 30), rng.randint(1, 12)
        plan = full(origin, block, origin + rng.randint(1, 30))
        plans.append(plan)
        add(canvas, str(slot), slot, rng.choice(["threshold", "joint_threshold"]), plan)
    for slot in range(SLOTS):
        tokens = [rng.choice([MASK, rng.randrange(90)]) for _ in range(canvas.width)]
        canvas.tokens[slot] = torch.tensor(tokens)
    slots = rng.sample(range(SLOTS), 4)
    grids = [plans[slot].grid for slot in slots]
    known = [rng.randrange(grid.origin, grid.end) for grid in grids]
    active = [rng.random() < 0.8 for _ in slots]
    batch = gather(canvas, slots, known, active)
    width = max(grid.block for grid in grids)
    assert batch.tokens.shape == batch.masked.shape == batch.editable.shape
    assert batch.tokens.shape == batch.decided_at.shape == (4, width)
    wanted = []
    for index, (slot, grid) in enumerate(zip(slots, grids, strict=True)):
        start, end = grid.start_of(known[index]), grid.end_of(known[index])
        assert int(batch.start[index]) == start
        assert int(batch.length[index]) == end - start
        assert int(batch.first[index]) == known[index] - start
        assert batch.position[index].tolist() == list(range(start, start + width))
        for column in range(width):
            inside = active[index] and known[index] <= start + column < end
            is_mask = bool(canvas.tokens[slot, column] == MASK)
            assert bool(batch.masked[index, column]) == (inside and is_mask)
            assert bool(batch.editable[index, column]) == (inside and not is_mask)
            if inside and (is_mask or canvas.revises[slot]):
                wanted.append((index, column))
    cells = list(zip(*(part.tolist() for part in batch.cell), strict=True))
    assert cells == wanted


def test_the_sequence_of_a_short_block_ends_with_it() -> None:
    """Penalties would count what lies past the end, and bad words read it."""
    canvas = new_canvas(full_attention=True)
    add(canvas, "long", 0, plan=full(3, 9, 12))
    add(canvas, "short", 1, plan=full(5, 4, 11))
    take_step(canvas, [0, 1], [3, 6], [{8: 1}, {3: 2}])
    known = torch.arange(SLOTS * 20).view(SLOTS, 20)
    batch = gather(canvas, [0, 1], [3, 6])
    assert batch.sequence(1, known).tolist() == [20, 21, 22, 23, 24, 25, -1, -1, 2]
    assert batch.sequence(0, known).tolist() == [0, 1, 2, *[-1] * 8, 1]
    canvas.tokens[1] = MASK
    batch = gather(canvas, [0, 1], [3, 9])  # the last block, cut at the end
    assert batch.length.tolist() == [9, 2]
    assert batch.sequence(1, known).tolist() == [*range(20, 29), -1, -1]


def test_no_block_is_past_the_end() -> None:
    """Positions past the longest request have no pages."""
    canvas = new_canvas(full_attention=True)
    add(canvas, "a", 0, plan=full(5, 8, 16))
    batch = gather(canvas, [0], [13])
    assert (batch.start.tolist(), batch.length.tolist()) == ([13], [3])
    assert batch.masked.tolist() == [[True] * 3 + [False] * 5]
    take_step(canvas, [0], [13], [{0: 1, 2: 3}])
    batch = gather(canvas, [0], [14])
    assert batch.masked.tolist() == [[False, True] + [False] * 6]
    assert batch.editable.tolist() == [[False, False, True] + [False] * 5]


def test_a_step_without_a_mask_is_counted_by_the_blocks_own_length() -> None:
    """Masks past the end of a short block would keep it from being done."""
    canvas = new_canvas(full_attention=True)
    add(canvas, "a", 0, "joint_threshold", full(5, 2, 7))
    add(canvas, "b", 1, plan=full(5, 6, 11))
    take_step(canvas, [0, 1], [5, 5], [{0: 1, 1: 2}, {5: 3}])
    batch = gather(canvas, [0, 1], [5, 5])
    assert batch.post_steps.tolist() == [1, 0]


def test_a_finished_short_block_leaves_the_others_of_the_step() -> None:
    """The widths of the canvas and of the step differ, and each slot keeps its own."""
    canvas = new_canvas(full_attention=True)
    add(canvas, "wide", 4, plan=full(3, 10, 13))
    add(canvas, "a", 0, plan=full(5, 2, 9))
    add(canvas, "b", 1, plan=full(5, 6, 11))
    take_step(canvas, [4], [3], [{9: 8}])
    writes = [{0: 1, 1: 2}, {5: 3}]
    take_step(canvas, [0, 1], [5, 5], writes, finished=[True, False])
    assert state(canvas, 0) == ([MASK] * 10, [0] * 10, 0, 0)
    assert state(canvas, 1) == ([MASK] * 5 + [3] + [MASK] * 4, [0] * 10, 1, 0)
    assert state(canvas, 4) == ([MASK] * 9 + [8], [0] * 10, 1, 0)


@pytest.mark.parametrize(("own", "other"), [(3, 8), (8, 3)])
def test_a_suspended_block_goes_on_in_a_canvas_of_another_width(
    own: int, other: int
) -> None:
    """Tokens past its end, of the slot's last request, would be taken for its own."""
    canvas = new_canvas(full_attention=True)
    plan = full(5, own, 5 + 2 * own)
    add(canvas, "a", 0, "credit", plan)
    take_step(canvas, [0], [5], [{own - 1: 5}])
    take_step(canvas, [0], [5], [{1: 6}])
    assert canvas.history is not None
    ids, values = torch.arange(own * own).view(own, own), torch.rand(own, own)
    canvas.history[0][0, :own, :own], canvas.history[1][0, :own, :own] = ids, values
    before = state(canvas, 0)
    canvas.suspend("a", 0)
    for slot in (0, 3):
        add(canvas, f"b{slot}", slot, "credit", full(5, other, 5 + other))
        take_step(canvas, [slot], [5], [{c: 40 + c for c in range(other)}])
        canvas.history[0][slot], canvas.history[1][slot] = 9, 9.0
    add(canvas, "a", 3, "credit", plan)
    after = state(canvas, 3)
    assert [row[:own] for row in after[:2]] == [row[:own] for row in before[:2]]
    assert after[2:] == before[2:] == (2, 0)
    assert after[0][own:] == [MASK] * (canvas.width - own)
    assert torch.equal(canvas.history[0][3, :own, :own], ids)
    assert torch.equal(canvas.history[1][3, :own, :own], values)
    batch = gather(canvas, [3], [5])
    assert batch.masked.sum() == own - 2


def test_a_slot_keeps_nothing_of_a_former_guided_request() -> None:
    """An unguided request would be moved away from what is in its own pages."""
    canvas = new_canvas(full_attention=True)
    slots = np.array([2])
    add(canvas, "old", 2, plan=full(5, 6, 17, "dual", 32), cfg_scale=1.5)
    assert canvas.any_guided(slots) and not canvas.any_guided(np.array([0, 1, 3]))
    assert (int(canvas.twin[2]), float(canvas.cfg_scale[2])) == (32, 1.5)
    assert bool(canvas.reuses[2])
    add(canvas, "new", 2, plan=full(7, 3, 13))
    assert not canvas.any_guided(slots)
    assert (int(canvas.twin[2]), float(canvas.cfg_scale[2])) == (0, 0.0)
    assert (int(canvas.twin_np[2]), int(canvas.seq_len_np[2])) == (0, 13)
    assert not bool(canvas.reuses[2])
    assert gather(canvas, [2], [7]).guided is None


def test_what_follows_a_canvas_is_its_own_requests_suffix() -> None:
    """A token of another request, or of the slot's last owner, changes the answer."""
    canvas = new_canvas(full_attention=True)
    slots = np.array([0, 1, 2])
    assert not canvas.any_infilling(slots)
    long, short = [3, 1, 4, 1, 5], [9, 2]
    add(canvas, "a", 0, plan=infilling(5, 3, 8, long), suffix_token_ids=long)
    add(canvas, "old", 1, plan=infilling(5, 3, 8, long), suffix_token_ids=long)
    add(canvas, "b", 1, plan=infilling(5, 4, 9, short), suffix_token_ids=short)
    add(canvas, "c", 2, plan=full(5, 2, 7))
    assert canvas.any_infilling(slots) and not canvas.any_infilling(slots[2:])
    position = torch.arange(20)
    for slot, end, suffix in ((0, 8, long), (1, 9, short), (2, 7, [])):
        inside, token = canvas.suffix_at(torch.full_like(position, slot), position)
        expected = list(range(end, end + len(suffix)))
        assert inside.nonzero().squeeze(1).tolist() == expected
        assert token[inside].tolist() == suffix
        assert canvas.seq_len[slot] == canvas.seq_len_np[slot] == end + len(suffix)


def test_the_cells_of_guided_requests_are_named() -> None:
    """Guidance of an unguided request, or of a neighbour's rows, changes its tokens."""
    canvas = new_canvas(full_attention=True)
    add(canvas, "a", 0, plan=full(5, 3, 8))
    add(canvas, "b", 1, plan=full(5, 4, 9, twin=16), cfg_scale=1.0)
    add(canvas, "c", 2, plan=full(5, 2, 7))
    take_step(canvas, [1], [5], [{2: 7}])
    batch = gather(canvas, [0, 1, 2], [5, 5, 5])
    assert batch.guided is not None
    cells = [(int(batch.cell[0][i]), int(batch.cell[1][i])) for i in batch.guided]
    assert cells == [(1, 0), (1, 1), (1, 3)]


def test_the_unconditional_branch_follows_its_half_of_the_span() -> None:
    """Rows of another position would guide the tokens."""
    canvas = new_canvas(full_attention=True)
    add(canvas, "a", 0, plan=full(5, 4, 13, "dual", 16), cfg_scale=1.0)
    slot, start = torch.tensor([0, 0]), torch.tensor([0, 9])
    length = torch.tensor([16 + 13, 8])
    assert canvas.twin_row(slot, start, length).tolist() == [16, 4]


def share_by_hand(steps: int, eps: float, step: int) -> float:
    if step >= steps - 1:
        return 1.0
    times = torch.linspace(1, eps, steps + 1)
    return float(1 - times[step + 1] / times[step])


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_the_time_of_each_step_is_the_authors(steps: int, eps: float) -> None:
    """A bit of it decides whether a step takes a token."""
    expected = [share_by_hand(steps, eps, step) for step in range(steps)]
    grid = time_grid(steps, eps)
    assert grid.dtype == torch.float32
    assert grid.tolist() == expected


def test_requests_with_other_steps_have_their_own_times() -> None:
    """A request with few steps would still be decoding when it should be done."""
    canvas = new_canvas(full_attention=True)
    wishes = {0: (3, 1e-3), 1: (9, 0.1), 2: (1, 0.5)}

    def check(slots: list[int]) -> None:
        for step in range(12):
            for slot in slots:
                canvas.step[slot] = step
            batch = gather(canvas, slots, [5] * len(slots))
            expected = [share_by_hand(*wishes[slot], step) for slot in slots]
            assert canvas.time_share(batch, batch.slot.numpy()).tolist() == expected

    for slot, (steps, eps) in wishes.items():
        rule = "maskgit_plus"
        add(canvas, str(slot), slot, rule, full(5, 8, 13), steps=steps, eps=eps)
        check([done for done in wishes if done <= slot])
    wishes[1] = (2, 0.25)  # the next request in the slot takes fewer
    add(canvas, "next", 1, "origin", full(5, 8, 13), steps=2, eps=0.25)
    check([2, 1, 0])


def test_times_are_there_beside_requests_of_other_rules() -> None:
    """A batch of several rules asks for the times of all."""
    canvas = new_canvas(full_attention=True)
    add(canvas, "a", 0, "neg_entropy", full(5, 8, 13), steps=4)
    add(canvas, "b", 1, "low_confidence", full(5, 8, 13), steps=4)
    canvas.step[1] = 50
    share = time_share(canvas, [1, 0], [5, 5])
    assert share[1] == share_by_hand(4, 1e-3, 0)


def test_a_request_of_many_steps_takes_no_room_in_every_slot() -> None:
    """The most that a request may ask for, in a table of all slots, is gigabytes."""
    canvas = new_canvas(full_attention=True)
    steps = 1_000_000
    add(canvas, "a", 0, "maskgit_plus", full(5, 8, 13), steps=steps)
    tables = [v for v in vars(canvas).values() if isinstance(v, torch.Tensor)]
    held = sum(v.numel() for v in (*tables, *canvas.time.values()))
    assert held < 2 * steps
    for step in (0, 1, 499_999, 999_998, 999_999):
        canvas.step[0] = step
        (share,) = time_share(canvas, [0], [5]).tolist()
        assert share == share_by_hand(steps, 1e-3, step)


def test_a_resumed_request_goes_on_in_its_times() -> None:
    """It would begin them again, and take more steps than it was given."""
    canvas = new_canvas(full_attention=True)
    plan = full(5, 8, 13)
    add(canvas, "a", 0, "maskgit_plus", plan, steps=6)
    take_step(canvas, [0], [5], [{3: 5}])
    take_step(canvas, [0], [5], [{}])
    canvas.suspend("a", 0)
    add(canvas, "b", 0, "maskgit_plus", plan, steps=2)
    add(canvas, "a", 3, "maskgit_plus", plan, steps=6)
    share = time_share(canvas, [3], [5])
    assert share.tolist() == [share_by_hand(6, 1e-3, 2)]


def test_what_a_rule_remembers_comes_back_without_another_requests() -> None:
    """The slot's last owner had a longer block: its credit would count here too."""
    canvas = new_canvas(full_attention=True)
    add(canvas, "a", 0, "credit", full(5, 4, 13))
    add(canvas, "b", 1, "credit", full(5, 8, 13))
    assert canvas.history is not None
    for table in canvas.history:
        table[0, :4, :4] = 2
        table[1, :8, :8] = 3
    canvas.suspend("a", 0)
    add(canvas, "a", 1, "credit", full(5, 4, 13))
    for table in canvas.history:
        assert table[1, :4, :4].eq(2).all()
        assert table[1, 4:].eq(0).all() and table[1, :, 4:].eq(0).all()
