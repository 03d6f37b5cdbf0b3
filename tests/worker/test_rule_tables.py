"""The rule of every slot, its parameters and its times."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.decoding.times import share_by_hand
from tests.decodings import decoding
from tests.worker.blocks import add_full, gather, take_step
from tests.worker.desk import CPU, Desk
from vllm_dllm.request import MAX_CREDIT_BLOCK
from vllm_dllm.worker.rule_tables import RuleTables

SLOTS = 5


def time_share(tables: RuleTables, slots: list[int], steps: list[int]) -> list[float]:
    return tables.time_share(torch.tensor(slots), torch.tensor(steps)).tolist()


def test_parameters_arrive_as_they_were_asked_for() -> None:
    """A threshold in an integer tensor is 0."""
    tables = RuleTables(SLOTS, CPU)
    plain = decoding("threshold", threshold=0.375, steps=1_000_000)
    tables.add_request(1, plain, 4)
    joint = decoding("joint_threshold", edit_threshold=0.25, max_post_steps=0)
    tables.add_request(2, joint, 4)
    found = tables.parameters_of("threshold", torch.tensor([1]))
    assert found["threshold"].tolist() == [0.375]
    assert found["steps"].tolist() == [1_000_000]
    found = tables.parameters_of("joint_threshold", torch.tensor([2]))
    assert found["edit_threshold"].tolist() == [0.25]
    assert found["max_post_steps"].tolist() == [0]
    assert found["threshold"].item() == pytest.approx(0.9)


def test_the_rules_of_a_batch_are_those_of_its_requests_now() -> None:
    """A request would go on by the rule of the one that had its slot before."""
    tables, slot_np = RuleTables(SLOTS, CPU), np.array([3, 1])
    slot = torch.from_numpy(slot_np)

    def found(is_busy: bool = False) -> dict[str, list[float]]:
        shares = tables.of_batch(slot, slot_np, is_busy).shares
        return {share.name: share.params["threshold"].tolist() for share in shares}

    for place, threshold in ((1, 0.25), (3, 0.5)):
        tables.add_request(place, decoding("threshold", threshold=threshold), 4)
    assert found() == found() == {"threshold": [0.5, 0.25]}
    adaptive = dataclasses.replace(
        decoding("threshold", threshold=0.75), busy_threshold=0.125
    )
    tables.add_request(3, adaptive, 4)
    assert found() == {"threshold": [0.75, 0.25]}
    assert found(is_busy=True) == {"threshold": [0.125, 0.25]}
    tables.add_request(1, decoding("joint_threshold", threshold=0.5), 4)
    assert found() == {"threshold": [0.75], "joint_threshold": [0.5]}
    slot_np[:] = slot[:] = 1
    assert found() == {"joint_threshold": [0.5, 0.5]}


def test_what_rules_remember_grows_with_blocks_of_their_own_requests() -> None:
    """A table [slots, block, block] of a block of thousands is larger than the machine;
    that is why credit has a limit. Other requests have none."""
    for order in (("credit", "threshold"), ("threshold", "credit")):
        tables = RuleTables(SLOTS, CPU)
        for slot, rule in enumerate(order):
            block = 4 if rule == "credit" else 3 * MAX_CREDIT_BLOCK
            tables.add_request(slot, decoding(rule, block), block)
        assert tables.memory.keys() == {"credit_token", "credit"}
        for table in tables.memory.values():
            assert table.values[0].numel() <= MAX_CREDIT_BLOCK**2


def test_requests_with_other_steps_have_their_own_times() -> None:
    """A request with few steps would still be decoding when it should be done."""
    tables = RuleTables(SLOTS, CPU)
    wishes = {0: (3, 1e-3), 1: (9, 0.1), 2: (1, 0.5)}

    def check(slots: list[int]) -> None:
        for step in range(12):
            expected = [share_by_hand(*wishes[slot], step) for slot in slots]
            assert time_share(tables, slots, [step] * len(slots)) == expected

    for slot, (steps, eps) in wishes.items():
        tables.add_request(slot, decoding("maskgit_plus", 8, steps, eps=eps), 8)
        check([done for done in wishes if done <= slot])
    wishes[1] = (2, 0.25)  # the next request in the slot takes fewer
    tables.add_request(1, decoding("origin", 8, 2, eps=0.25), 8)
    check([2, 1, 0])


def test_times_are_there_beside_requests_of_other_rules() -> None:
    """A batch of several rules asks for the times of all."""
    tables = RuleTables(SLOTS, CPU)
    tables.add_request(0, decoding("neg_entropy", 8, 4), 8)
    tables.add_request(1, decoding("low_confidence", 8, 4), 8)
    assert time_share(tables, [1, 0], [50, 0])[1] == share_by_hand(4, 1e-3, 0)


def test_the_table_of_times_grows_only_to_the_longest_grid_in_use() -> None:
    """A row of every slot for the steps of a rule that reads no times is memory for
    nothing; a row that is too short decides all masks early."""
    tables = RuleTables(SLOTS, CPU)
    tables.add_request(0, decoding("low_confidence", 8, 100_000), 8)
    assert tables.time.shape == (SLOTS, 1)
    for slot, steps, longest in ((1, 7, 7), (2, 40, 40), (3, 9, 40)):
        tables.add_request(slot, decoding("maskgit_plus", 8, steps), 8)
        assert tables.time.shape == (SLOTS, longest)
    for slot, steps in ((1, 7), (2, 40), (3, 9)):
        for step in (0, 3, 6, 8, 38, 39, 40, 99):
            expected = [share_by_hand(steps, 1e-3, step)]
            assert time_share(tables, [slot], [step]) == expected


def test_a_resumed_request_goes_on_in_its_times() -> None:
    """It would begin them again, and take more steps than it was given."""
    desk = Desk("full", SLOTS)
    grid, dream = (5, 8, 13), {"algorithm": "maskgit_plus"}
    a = add_full(desk, "a", 0, grid, steps=6, **dream)
    take_step(desk, [a], [5], [{3: 5}])
    take_step(desk, [a], [5], [{}])
    desk.slots.suspend("a", 0)
    add_full(desk, "b", 0, grid, steps=2, **dream)
    again = add_full(desk, "a", 3, grid, steps=6, **dream)
    step = gather(desk, [again], [5]).step
    share = desk.slots.rules.time_share(torch.tensor([3]), step)
    assert share.tolist() == [share_by_hand(6, 1e-3, 2)]
