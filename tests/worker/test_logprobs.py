"""Logprobs wait with their tokens: of the deciding step, for the one who asked."""

import math

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import LogprobsTensors

from tests.decodings import decoding
from vllm_dllm.span import UNBOUNDED, BlockCausal, FullAttention, Grid, Plan
from vllm_dllm.worker.canvas import Canvas, CanvasBatch
from vllm_dllm.worker.logprobs import Logprobs

SLOTS, BLOCK, VOCAB, MASK = 4, 4, 12, 11
CPU = torch.device("cpu")
PARAMS = decoding("joint_threshold")
BLOCK_CAUSAL = BlockCausal(Grid(0, BLOCK, UNBOUNDED))


class Desk:
    """A canvas and its logprobs, and one way to take a step with both."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.canvas = Canvas(SLOTS, BLOCK, MASK, CPU)
        self.logprobs = Logprobs(VOCAB, MASK, CPU)
        self.generator = torch.Generator().manual_seed(0)
        self.dtype = dtype

    def add(
        self, name: str, slot: int, logprobs: int | None, plan: Plan = BLOCK_CAUSAL
    ) -> None:
        self.canvas.add_request(name, slot, PARAMS, plan, max_len=50)
        params = SamplingParams(logprobs=logprobs)
        self.logprobs.add_request(name, slot, params, plan.grid.block)

    def suspend(self, name: str, slot: int) -> None:
        self.canvas.suspend(name, slot)
        self.logprobs.suspend(name, slot)

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
        self.logprobs.record(logits, batch, write, candidate, slots)
        assert torch.equal(logits[:, :MASK], before)
        batch.write(write, candidate)
        none = torch.zeros(len(slots), dtype=torch.bool)
        self.canvas.scatter(batch, finished=none)
        return expected

    def gather(self, slots: list[int], known: list[int]) -> CanvasBatch:
        active = torch.ones(len(slots), dtype=torch.bool)
        return self.canvas.gather(
            torch.tensor(slots), np.array(slots), torch.tensor(known), active
        )

    def hand_out(
        self, slots: list[int], first: list[int], count: list[int]
    ) -> LogprobsTensors:
        handed = self.logprobs.hand_out(slots, first, count)
        assert handed is not None
        return handed


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
    desk = Desk()
    short, long = Grid(9, 3, 15), Grid(9, 7, 30)
    desk.add("a", 0, 1, FullAttention(short, "none"))
    desk.add("b", 2, 2, FullAttention(long, "none"))
    first = desk.step([2, 0], [9, 9], [{6: 1, 0: 2}, {0: 3, 2: 4}])
    second = desk.step([0, 2], [10, 10], [{1: 5}, {1: 6}])
    handed = desk.hand_out([0, 2], [1, 1], [2, 1])
    check(handed, 0, 5, second[0, 1], 1)
    check(handed, 1, 4, first[0, 2], 1)
    check(handed, 2, 6, second[2, 1], 2)
    check(desk.hand_out([2], [6], [1]), 0, 1, first[2, 6], 2)
    desk.suspend("b", 2)
    desk.add("c", 2, 0, FullAttention(short, "none"))
    desk.add("b", 3, 2, FullAttention(long, "none"))
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
    assert desk.logprobs.hand_out([0], [0], [0]) is None


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
    assert desk.logprobs.hand_out([0], [0], [1]) is None
    desk.add("c", 0, 4)
    handed = desk.hand_out([0], [0], [BLOCK])
    assert handed.logprobs.shape == (BLOCK, 5)
    assert not handed.logprobs.any() and not handed.selected_token_ranks.any()


def test_a_forgotten_request_leaves_nothing_behind() -> None:
    """Aborted requests would fill the memory of a server one by one."""
    desk = Desk()
    desk.add("a", 0, 2)
    desk.suspend("a", 0)
    desk.logprobs.forget("a")
    desk.logprobs.forget("never seen")
    desk.logprobs.suspend("plain", 1)  # asked for none
    assert not desk.logprobs._suspended
    desk.add("a", 1, None)
    assert not desk.logprobs.kept
