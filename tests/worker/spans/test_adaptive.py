"""Where adaptive blocks end, against a plain loop; and what of it a slot keeps."""

from random import Random
from typing import Any

import pytest
import torch

from tests.decodings import decoding
from tests.worker.desk import Desk, TableLogits
from vllm_dllm.plans.adaptive import Adaptive
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.grid import Grid
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.spans.adaptive import AdaptiveBlocks

VOCAB, SLOTS = 6, 5
SURE = (0.0, 0.25, 0.5, 0.75)


def a_request(rng: Random) -> tuple[Decoding, Adaptive]:
    ids = rng.sample(range(VOCAB), rng.randint(0, VOCAB))
    settled = decoding(
        "adablock",
        delimiter_ids=ids,
        delimiter_threshold=rng.choice((None, *SURE)),
    )
    answer, default = rng.randint(1, 40), rng.randint(1, 9)
    window = answer // 4 if ids else 0
    grid = Grid(3, max(default, window), 3 + answer)
    return settled, Adaptive(grid, "none", 0, 0, default, window)


def length_by_hand(
    settled: Decoding, plan: Adaptive, room: int, tokens: list[int], sure: list[float]
) -> int:
    """Length of a block that begins."""
    found = [
        (-sure[place], place)
        for place in range(min(plan.window, room))
        if tokens[place] in settled.delimiter_ids
        and sure[place] >= settled.parameters["delimiter_threshold"]
    ]
    return min(found)[1] + 1 if found else min(plan.default, room)


def test_blocks_end_where_a_plain_loop_ends_them() -> None:
    """A delimiter of a neighbour, past the window or less sure than another one would
    end the block at another token; one that goes on ends where it was found."""
    rng, seen = Random(0), []
    for _ in range(300):
        blocks = AdaptiveBlocks(SLOTS, torch.device("cpu"))
        requests = [a_request(rng) for _ in range(SLOTS)]
        for slot, (settled, plan) in enumerate(requests):
            blocks.add_request(slot, settled, plan)
        known = [rng.randint(3, plan.grid.end - 1) for _, plan in requests]
        begins = [rng.random() < 0.7 for _ in requests]
        room = [
            min(plan.grid.block, plan.grid.end - at)
            for (_, plan), at in zip(requests, known, strict=True)
        ]
        width = max(room)
        tokens = [[rng.randrange(VOCAB) for _ in range(width)] for _ in requests]
        sure = [[rng.choice(SURE) for _ in range(width)] for _ in requests]
        slot = torch.arange(SLOTS)
        found = blocks.find(
            slot,
            torch.tensor(room),
            torch.tensor(begins),
            torch.tensor(tokens),
            torch.tensor(sure),
        )
        length = found.tolist()
        ends = blocks.keep(slot, torch.tensor(known), torch.tensor(begins), found)
        for index, (settled, plan) in enumerate(requests):
            at, left, row = known[index], room[index], (tokens[index], sure[index])
            expected = length_by_hand(settled, plan, left, *row)
            assert length[index] == (expected if begins[index] else left)
            end = at + expected if begins[index] else 0
            assert int(blocks.found[index]) == int(ends[index]) == end
            seen.append(expected - min(plan.default, left))
    assert min(seen) < 0 < max(seen)


def test_an_end_is_kept_for_the_block_that_it_is_of() -> None:
    """One that is known already is that of the block before."""
    blocks = AdaptiveBlocks(3, torch.device("cpu"))
    settled, plan = a_request(Random(1))
    blocks.add_request(1, settled, plan)
    blocks.found[1] = 9
    saved: Any = blocks.save(1)
    blocks.add_request(1, settled, plan)
    blocks.restore(1, saved)
    slot, longest = torch.tensor([1, 1]), torch.tensor([17, 17])
    assert blocks.end_of(slot, torch.tensor([8, 9]), longest).tolist() == [9, 17]
    blocks.add_request(1, decoding(), BlockCausal(Grid(0, 4, 99)))
    assert not blocks.adapts_np.any() and not blocks.adapts.any()
    assert int(blocks.found[1]) == 0


def a_mix(rng: Random) -> dict[str, dict[str, Any]]:
    """Requests with such blocks, of any cache, beside others."""
    asked: dict[str, dict[str, Any]] = {}
    for name in "abcd":
        ids = rng.sample(range(1, 19), rng.choice((1, 4, 12)))
        asked[name] = {
            "algorithm": "adablock",
            "threshold": rng.choice((0.3, 0.7)),
            "block_length": rng.randint(1, 9),
            "cache": rng.choice(("none", "prefix", "dual")),
            "delimiter_ids": ids,
            "delimiter_threshold": rng.choice((0.0, 0.4)),
            "cfg_scale": rng.choice((0.0, 0.0, 1.5)),
        }
    asked["e"] = {"algorithm": "low_confidence", "cache": "dual", "block_length": 4}
    asked["f"] = {"algorithm": "d2f", "block_length": 5}
    return asked


def answers(
    family: str, seed: int, names: str, whole_blocks: bool, preempts: bool
) -> dict[str, list[int]]:
    """What some of a mix of requests answer."""
    desk, rng, chance = Desk(family, slots=8), Random(seed), Random(seed)
    desk.slots.canvas.whole_blocks = whole_blocks
    lengths = {name: rng.randint(1, 30) for name in "abcdef"}
    requests = [
        desk.add(name, [5, 6, 7], fields, max_tokens=lengths[name], seed=seed)
        for name, fields in a_mix(rng).items()
        if name in names
    ]
    logits, steps = TableLogits(seed), 0
    while desk.running:
        desk.step(logits)
        steps += 1
        if preempts and desk.running and chance.random() < 0.3:
            desk.preempt(chance.choice([*desk.running]))
        assert steps < 500
    return {request.name: request.answer for request in requests}


@pytest.mark.parametrize("family", ["full", "shifted"])
@pytest.mark.parametrize("seed", range(6))
def test_company_and_preemption_change_no_block(family: str, seed: int) -> None:
    """The end of a block is a row's own, in a batch whose rows are blocks as well."""
    together = answers(family, seed, "abcdef", False, preempts=False)
    for name, answer in together.items():
        assert answers(family, seed, name, False, preempts=False) == {name: answer}
    assert answers(family, seed, "abcdef", True, preempts=False) == together
    assert answers(family, seed, "abcdef", False, preempts=True) == together
