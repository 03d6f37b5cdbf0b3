"""The layout of a step: C++ does what torch does."""

import pytest
import torch

from vllm_dllm.ops import extension
from vllm_dllm.ops.spans import (
    block_of,
    block_rows,
    bounds_of,
    logit_rows,
    of_rings,
    show_known,
    tokens_of,
)
from vllm_dllm.plans.grid import Grid

SLOTS, MAX_LEN = 9, 50


def laid_out(seed: int, requests: int) -> list[torch.Tensor]:
    """What is found of a random step."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=draw)

    slot = torch.randperm(SLOTS, generator=draw)[:requests]
    lengths = number(1, 20, requests)
    query_start_loc = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    starts, shown = number(0, MAX_LEN, requests).tolist(), number(0, MAX_LEN, requests)
    spans = zip(starts, lengths.tolist(), strict=True)
    position = torch.cat([torch.arange(s, s + length) for s, length in spans])
    query_start, owner = tokens_of(query_start_loc.int(), len(position))
    found = query_start, owner, *bounds_of(query_start, position)
    start, end = found[2:]
    assert start.tolist() == starts
    assert (end - start).tolist() == lengths.tolist()
    ids = number(0, 99, len(owner))
    all_token_ids = number(100, 200, SLOTS, MAX_LEN).int()
    show_known(ids, owner, position, slot, shown, all_token_ids)
    room, blocks = number(1, 9, SLOTS), number(200, 300, SLOTS, 12)
    of_tokens = owner, position, slot, shown
    rings = of_rings(*of_tokens, room, blocks[:, :9], all_token_ids)
    wanted = number(0, requests, 30)
    rows = [
        logit_rows(wanted, number(0, 80, 30), query_start, start, shift)
        for shift in (0, 1)
    ]
    step = query_start_loc.int(), lengths.int().numpy(), (start + lengths).int()
    return [*found, ids, rings, *rows, *block_rows(*step, block=int(number(1, 9, 1)))]


@pytest.mark.parametrize("requests", [1, 2, SLOTS])
@pytest.mark.parametrize("seed", range(10))
def test_a_layout_is_the_same_in_every_implementation(
    requests: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model would be shown other tokens where no compiler was."""
    native = laid_out(seed, requests)
    monkeypatch.setattr(extension, "load", lambda: None)
    for one, other in zip(native, laid_out(seed, requests), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("is_native", [True, False])
def test_a_block_is_that_of_its_grid(
    is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker and scheduler would not agree where the next step starts."""
    if not is_native:
        monkeypatch.setattr(extension, "load", lambda: None)
    draw = torch.Generator().manual_seed(0)
    origin, block, end, known = (
        torch.randint(low, high, (200,), generator=draw)
        for low, high in ((0, 30), (1, 9), (60, 90), (0, 60))
    )
    slot = torch.randperm(200, generator=draw)
    start, length = block_of(slot, known, origin, block, end)
    for index, place in enumerate(slot.tolist()):
        grid = Grid(int(origin[place]), int(block[place]), int(end[place]))
        at = int(known[index])
        assert int(start[index]) == grid.start_of(at)
        assert int(start[index] + length[index]) == grid.end_of(at)
