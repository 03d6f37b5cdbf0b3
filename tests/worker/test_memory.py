"""What is kept of a block while its request has no slot, and while others have."""

import pytest
import torch

from tests.worker.blocks import add_full, fresh, gather, state, take_step
from tests.worker.desk import MASK, Desk
from vllm_dllm.worker.memory import BlockTable

SLOTS, BLOCK = 5, 4


def remembered(desk: Desk) -> tuple[torch.Tensor, torch.Tensor]:
    """[slots, width, width] each: the tables of credit."""
    memory = desk.slots.rules.memory
    return memory["credit_token"].values, memory["credit"].values


def remember(desk: Desk, slot: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Something for credit to remember of a slot's block."""
    ids = torch.arange(block * block).view(block, block)
    values = torch.rand(block, block)
    for table, part in zip(remembered(desk), (ids, values), strict=True):
        table[slot, :block, :block] = part
    return ids, values


def test_a_suspended_request_goes_on_in_another_slot() -> None:
    """Decoded again in another order, a block gets other tokens."""
    desk = Desk("block-causal", SLOTS, BLOCK)
    traced = {"return_trajectory": True}
    a = desk.add("a", [5] * 8, traced, slot=0)
    take_step(desk, [a], [8], [{3: 5}])
    take_step(desk, [a], [8], [{1: 6}])
    before = state(desk, 0)
    desk.slots.suspend("a", 0)
    b = desk.add("b", [5] * 4, slot=0)  # takes the slot
    take_step(desk, [b], [4], [{0: 1, 1: 2}])
    desk.add("a", [5] * 8, traced, slot=4)
    assert state(desk, 4) == before == ([MASK, 6, MASK, 5], [0, 1, 0, 0], 2, 0)
    assert desk.slots.telling.traced == {4}
    desk.add("a", [5] * 8, traced, slot=3)  # a state is given back once
    assert state(desk, 3) == fresh()


def test_a_forgotten_request_leaves_nothing_to_one_of_its_name() -> None:
    """A client that uses an id again would get tokens of the first request."""
    desk = Desk("block-causal", SLOTS, BLOCK)
    a = desk.add("a", [5] * 8, slot=0)
    take_step(desk, [a], [8], [{3: 5}])
    desk.slots.suspend("a", 0)
    desk.slots.forget("a")
    desk.slots.forget("never seen")
    desk.add("a", [5] * 8, slot=1)
    assert state(desk, 1) == fresh()
    assert not desk.slots.suspended.saved


def test_what_a_rule_remembers_goes_with_its_request() -> None:
    """After preemption a rule with a memory would decide otherwise."""
    desk = Desk("block-causal", SLOTS, BLOCK)
    a = desk.add("a", [5] * 8, {"algorithm": "credit"}, slot=0)
    kept = remember(desk, 0, BLOCK)
    take_step(desk, [a], [8], [{0: 1}])
    desk.slots.suspend("a", 0)
    for table in remembered(desk):
        table[0] = 0  # by the slot's next request
    desk.add("a", [5] * 8, {"algorithm": "credit"}, slot=3)
    for table, part in zip(remembered(desk), kept, strict=True):
        assert torch.equal(table[3], part)


def test_what_a_rule_remembers_comes_back_without_another_requests() -> None:
    """The slot's last owner had a longer block: its credit would count here too."""
    desk = Desk("full", SLOTS, BLOCK)
    add_full(desk, "a", 0, (5, 4, 13), algorithm="credit")
    add_full(desk, "b", 1, (5, 8, 13), algorithm="credit")
    for table in remembered(desk):
        table[0, :4, :4] = 2
        table[1, :8, :8] = 3
    desk.slots.suspend("a", 0)
    add_full(desk, "a", 1, (5, 4, 13), algorithm="credit")
    for table in remembered(desk):
        assert table[1, :4, :4].eq(2).all()
        assert table[1, 4:].eq(0).all() and table[1, :, 4:].eq(0).all()


def test_a_longer_block_leaves_those_of_other_slots_as_they_are() -> None:
    """A request that comes would undo what others have decoded."""
    desk = Desk("full", SLOTS, BLOCK)
    a = add_full(desk, "a", 0, (7, 4, 15), algorithm="credit")
    take_step(desk, [a], [8], [{2: 5, 3: 6}])
    take_step(desk, [a], [8], [{1: 7}])
    kept = remember(desk, 0, 4)
    b = add_full(desk, "b", 3, (20, 11, 31), algorithm="credit")
    canvas = desk.slots.canvas
    assert canvas.tokens.values.shape == canvas.decided_at.values.shape == (SLOTS, 11)
    tokens, decided_at, step, _ = state(desk, 0)
    assert tokens == [MASK, 7, 5, 6] + [MASK] * 7
    assert (decided_at[:4], step) == ([0, 1, 0, 0], 2)
    for table, part in zip(remembered(desk), kept, strict=True):
        assert torch.equal(table[0, :4, :4], part)
        assert not table[0, :, 4:].any() and not table[0, 4:].any()
    batch = gather(desk, [b, a], [20, 8])
    assert batch.masked[0].all()
    assert batch.masked[1].tolist() == [False] * 11
    batch = gather(desk, [a], [7])
    assert batch.tokens.tolist() == [[MASK, 7, 5, 6]]  # no wider than it must be
    assert batch.masked.tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(("own", "other"), [(3, 8), (8, 3)])
def test_a_suspended_block_goes_on_in_a_canvas_of_another_width(
    own: int, other: int
) -> None:
    """Tokens past its end, of the slot's last request, would be taken for its own."""
    desk = Desk("full", SLOTS, BLOCK)
    grid = (5, own, 5 + 2 * own)
    a = add_full(desk, "a", 0, grid, algorithm="credit")
    take_step(desk, [a], [5], [{own - 1: 5}])
    take_step(desk, [a], [5], [{1: 6}])
    kept = remember(desk, 0, own)
    before = state(desk, 0)
    desk.slots.suspend("a", 0)
    for slot in (0, 3):
        shape = (5, other, 5 + other)
        b = add_full(desk, f"b{slot}", slot, shape, algorithm="credit")
        take_step(desk, [b], [5], [{c: 8 + c for c in range(other)}])
        for table in remembered(desk):
            table[slot] = 9
    again = add_full(desk, "a", 3, grid, algorithm="credit")
    after = state(desk, 3)
    assert [row[:own] for row in after[:2]] == [row[:own] for row in before[:2]]
    assert after[2:] == before[2:] == (2, 0)
    assert after[0][own:] == [MASK] * (desk.slots.canvas.tokens.values.shape[1] - own)
    for table, part in zip(remembered(desk), kept, strict=True):
        assert torch.equal(table[3, :own, :own], part)
    assert gather(desk, [again], [5]).masked.sum() == own - 2


def test_what_was_saved_is_not_changed_by_the_slots_next_request() -> None:
    """The preempted request would go on with the tokens of another."""
    table = BlockTable(2, (3,), torch.int64, torch.device("cpu"), fill=7)
    table.values[0] = torch.tensor([1, 2, 3])
    saved = table.save(0)
    table.grow(5)
    table.clear(0)
    assert table.values[0].tolist() == [7] * 5
    table.restore(1, saved)
    assert table.values[1].tolist() == [1, 2, 3, 7, 7]
