"""Logprobs wait with their tokens: of the deciding step, for the one who asked."""

import math
from typing import Any

import pytest
import torch
from vllm.v1.outputs import LogprobsTensors

from tests.worker import desk as worker
from tests.worker.blocks import add_full, gather
from tests.worker.desk import MASK, VOCAB, Running
from vllm_dllm.worker.canvas_batch import CanvasBatch

SLOTS, BLOCK, START = 4, 4, 8
"""START: of the blocks of a model with block-causal attention."""


class Desk:
    """One way to take a step with a canvas and its logprobs."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, family: str = "block-causal"
    ) -> None:
        self.desk = worker.Desk(family, SLOTS, BLOCK)
        self.logprobs = self.desk.slots.logprobs
        self.by_slot: dict[int, Running] = {}
        self.generator = torch.Generator().manual_seed(0)
        self.dtype = dtype

    def add(
        self,
        name: str,
        slot: int,
        logprobs: int | None,
        grid: tuple[int, int, int] | None = None,
        named: list[int] | None = None,
    ) -> None:
        asked: dict[str, Any] = {"logprobs": logprobs, "logprob_token_ids": named}
        dllm = {"algorithm": "joint_threshold"}
        if grid is None:
            request = self.desk.add(name, [5] * START, dllm, slot, **asked)
        else:
            request = add_full(self.desk, name, slot, grid, asked, **dllm)
        self.by_slot[slot] = request

    def suspend(self, name: str, slot: int) -> None:
        self.desk.slots.suspend(name, slot)
        self.desk.slots.release(slot)

    def step(
        self, slots: list[int], known: list[int], writes: list[dict[int, int]]
    ) -> dict[tuple[int, int], list[float]]:
        """Write column -> token of each request.

        Returns:
            The expected logprobs of each cell (slot, column).
        """
        batch = self.gather(slots, known)
        request, column = batch.cell
        logits = torch.randn(len(request), VOCAB, generator=self.generator) * 3
        logits = logits.to(self.dtype)
        write = torch.zeros_like(batch.masked)
        candidate = torch.zeros_like(batch.tokens)
        for index, row in enumerate(writes):
            for place, token in row.items():
                write[index, place], candidate[index, place] = True, token
        expected = {}
        for row, values in enumerate(logits.double()):
            values[MASK] = -math.inf
            cell = slots[int(request[row])], int(column[row])
            expected[cell] = values.log_softmax(0).tolist()
        before = logits[:, :MASK].clone()
        self.logprobs.record(logits, batch, write, candidate)
        assert torch.equal(logits[:, :MASK], before)
        batch.write(write, candidate)
        none = torch.zeros(len(slots), dtype=torch.bool)
        self.desk.slots.canvas.scatter(batch, batch.first, finished=none)
        return expected

    def gather(self, slots: list[int], known: list[int]) -> CanvasBatch:
        return gather(self.desk, [self.by_slot[slot] for slot in slots], known)

    def hand_out(
        self, slots: list[int], first: list[int], count: list[int]
    ) -> LogprobsTensors:
        """Tokens from the column `first` of each request on."""
        handed = self.hands_out(slots, first, count)
        assert handed is not None
        return handed

    def hands_out(
        self, slots: list[int], first: list[int], count: list[int]
    ) -> LogprobsTensors | None:
        starts = [max(self.by_slot[slot].plan.grid.origin, START) for slot in slots]
        known = [start + column for start, column in zip(starts, first, strict=True)]
        batch = self.gather(slots, known)
        return self.logprobs.hand_out(batch, torch.tensor(count).int())


def check(
    handed: LogprobsTensors, row: int, token: int, expected: list[float], wanted: int
) -> None:
    """Row `row` is `token`, its logprob and rank, and the best `wanted` tokens."""
    best = sorted(expected, reverse=True)[:wanted]
    ids = handed.logprob_token_ids[row, : 1 + wanted].tolist()
    assert ids[0] == token
    assert len(set(ids[1:])) == wanted
    values = handed.logprobs[row, : 1 + wanted].tolist()
    assert values == pytest.approx([expected[t] for t in ids], abs=1e-5)
    assert values == pytest.approx([expected[token], *best], abs=1e-5)
    # As vLLM counts it: of equals, all come first.
    rank = sum(value >= expected[token] for value in expected)
    assert handed.selected_token_ranks[row].item() == rank


@pytest.mark.parametrize("wanted", [0, 1, 3, VOCAB, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logprobs_are_those_of_the_row_and_without_the_mask(
    wanted: int, dtype: torch.dtype
) -> None:
    """A neighbour's row, or a share for the mask, is not what the model said."""
    desk = Desk(dtype)
    desk.add("a", 1, wanted)
    expected = desk.step([1], [8], [{0: 5, 1: 2, 2: 2, 3: 10}])
    handed = desk.hand_out([1], [0], [BLOCK])
    assert handed.cu_num_generated_tokens == [0, 4]
    count = VOCAB if wanted == -1 else wanted
    assert handed.logprobs.shape == handed.logprob_token_ids.shape == (4, 1 + count)
    assert handed.logprob_token_ids.dtype == torch.int32
    for column, token in enumerate([5, 2, 2, 10]):
        check(handed, column, token, expected[1, column], count)


def test_logprobs_of_named_tokens_are_those_tokens_own() -> None:
    """A label that is not among the most likely tokens would have none."""
    desk, named = Desk(), [7, 3, 7, 12]
    desk.add("a", 1, None, named=named)
    desk.add("b", 2, 2)
    writes = [{0: 5, 1: 2}, {0: 4, 1: 4}]
    expected = desk.step([1, 2], [8, 8], writes)
    handed = desk.hand_out([1, 2], [0, 0], [2, 2])
    for column, token in enumerate([5, 2]):
        assert handed.logprob_token_ids[column].tolist() == [token, *named]
        values = [expected[1, column][t] for t in (token, *named)]
        assert handed.logprobs[column].tolist() == pytest.approx(values, abs=1e-5)
        check(handed, 2 + column, 4, expected[2, column], 2)


def test_a_token_keeps_the_logprobs_of_the_step_that_decided_it() -> None:
    """Those of a later step see the token itself, and are near zero."""
    desk = Desk()
    desk.add("a", 0, 2)
    first = desk.step([0], [9], [{3: 4}])
    second = desk.step([0], [9], [{1: 6}])
    third = desk.step([0], [9], [{2: 7}])
    handed = desk.hand_out([0], [1], [3])
    check(handed, 0, 6, second[0, 1], 2)
    check(handed, 1, 7, third[0, 2], 2)
    check(handed, 2, 4, first[0, 3], 2)


def test_a_revised_token_brings_its_own_logprobs() -> None:
    """The answer would say how sure the model was of a token that is gone."""
    desk = Desk()
    desk.add("a", 0, 1)
    first = desk.step([0], [8], [{0: 1, 1: 2, 2: 3, 3: 4}])
    second = desk.step([0], [8], [{2: 9}])
    handed = desk.hand_out([0], [0], [4])
    check(handed, 1, 2, first[0, 1], 1)
    check(handed, 2, 9, second[0, 2], 1)


def test_each_request_of_a_batch_gets_its_own() -> None:
    """Rows that slip by one request report another client's tokens."""
    desk = Desk()
    for slot, wanted in enumerate([2, None, 5, 0]):
        desk.add(str(slot), slot, wanted)
    slots, known = [3, 1, 0, 2], [8, 9, 10, 8]
    writes = [{0: 1, 1: 2}, {1: 3, 2: 4}, {2: 5, 3: 6}, {0: 7, 3: 8}]
    expected = desk.step(slots, known, writes)
    handed = desk.hand_out(slots, [0, 1, 2, 0], [2, 2, 2, 1])
    assert handed.cu_num_generated_tokens == [0, 2, 2, 4, 5]
    assert handed.logprobs.shape == (5, 6)
    check(handed, 0, 1, expected[3, 0], 0)
    check(handed, 1, 2, expected[3, 1], 0)
    check(handed, 2, 5, expected[0, 2], 2)
    check(handed, 3, 6, expected[0, 3], 2)
    check(handed, 4, 7, expected[2, 0], 5)
    for row, wanted in [(0, 0), (1, 0), (2, 2), (3, 2)]:
        assert (handed.logprobs[row, 1 + wanted :] == -math.inf).all()


def test_parts_of_a_block_leave_one_after_another() -> None:
    """Tokens that left are followed by those of the same block, not the first."""
    desk = Desk()
    desk.add("a", 2, 1)
    first = desk.step([2], [8], [{0: 3, 2: 4}])
    check(desk.hand_out([2], [0], [1]), 0, 3, first[2, 0], 1)
    second = desk.step([2], [9], [{1: 5}])
    handed = desk.hand_out([2], [1], [2])
    check(handed, 0, 5, second[2, 1], 1)
    check(handed, 1, 4, first[2, 2], 1)


def test_blocks_of_different_lengths_keep_logprobs_of_their_own() -> None:
    """Kept in the width of one of them, the end of the longer one has no place."""
    desk = Desk(family="full")
    short, long = (9, 3, 15), (9, 7, 30)
    desk.add("a", 0, 1, short)
    desk.add("b", 2, 2, long)
    first = desk.step([2, 0], [9, 9], [{6: 1, 0: 2}, {0: 3, 2: 4}])
    second = desk.step([0, 2], [10, 10], [{1: 5}, {1: 6}])
    handed = desk.hand_out([0, 2], [1, 1], [2, 1])
    check(handed, 0, 5, second[0, 1], 1)
    check(handed, 1, 4, first[0, 2], 1)
    check(handed, 2, 6, second[2, 1], 2)
    check(desk.hand_out([2], [6], [1]), 0, 1, first[2, 6], 2)
    desk.suspend("b", 2)
    desk.add("c", 2, 0, short)
    desk.add("b", 3, 2, long)
    check(desk.hand_out([3], [6], [1]), 0, 1, first[2, 6], 2)


def test_a_step_without_tokens_hands_out_empty_rows() -> None:
    """vLLM cuts the tensors by request, and one row too many shifts all others."""
    desk = Desk()
    desk.add("a", 0, 1)
    desk.step([0], [8], [{3: 4}])
    handed = desk.hand_out([0], [0], [0])
    assert handed.cu_num_generated_tokens == [0, 0]
    assert handed.logprobs.shape == (0, 2)


def test_without_a_wish_nothing_is_kept() -> None:
    """A softmax per token would be paid for by everybody."""
    desk = Desk()
    desk.add("a", 0, None)
    desk.add("b", 1, 3)
    desk.step([0], [8], [{3: 4}])
    assert desk.logprobs.kept.keys() == {1}
    assert desk.hands_out([0], [0], [0]) is None


def test_the_logprobs_of_a_suspended_request_go_with_it() -> None:
    """A token decoded before preemption would leave with zeros."""
    desk = Desk()
    desk.add("a", 0, 2)
    first = desk.step([0], [8], [{1: 6}])
    desk.suspend("a", 0)
    assert not desk.logprobs.kept
    desk.add("b", 0, 1)
    desk.step([0], [8], [{1: 1}])
    desk.add("a", 3, 2)
    second = desk.step([3], [8], [{0: 7}])
    handed = desk.hand_out([3], [0], [2])
    check(handed, 0, 7, second[3, 0], 2)
    check(handed, 1, 6, first[0, 1], 2)


def test_a_slot_keeps_nothing_of_its_former_request() -> None:
    """A request that asked for nothing would answer with logprobs of another."""
    desk = Desk()
    desk.add("a", 0, 2)
    desk.step([0], [8], [{1: 6}])
    desk.add("b", 0, None)
    assert desk.hands_out([0], [0], [1]) is None
    desk.add("c", 0, 4)
    handed = desk.hand_out([0], [0], [BLOCK])
    assert handed.logprobs.shape == (BLOCK, 5)
    assert not handed.logprobs.any() and not handed.selected_token_ranks.any()


def test_a_forgotten_request_leaves_nothing_behind() -> None:
    """Aborted requests would fill the memory of a server one by one."""
    desk = Desk()
    desk.add("a", 0, 2)
    desk.suspend("a", 0)
    slots = desk.desk.slots
    slots.forget("a")
    slots.forget("never seen")
    desk.add("plain", 1, None)  # asked for none
    desk.suspend("plain", 1)
    assert slots.suspended.saved.keys() == {"plain"}
    slots.forget("plain")
    assert not slots.suspended.saved
    desk.add("a", 1, None)
    assert not desk.logprobs.kept
