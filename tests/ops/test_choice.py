"""How many positions a step decides, and which: all implementations agree."""

from collections.abc import Callable

import pytest
import torch

from vllm_dllm.ops.choice import (
    best,
    best_of_quota,
    best_torch,
    quota,
    quota_torch,
)

SHAPES = [(1, 1), (3, 4), (7, 33), (32, 1000)]
every_best = pytest.mark.parametrize("choose", [best, best_torch])


@pytest.mark.parametrize(("rows", "block"), SHAPES)
@pytest.mark.parametrize("seed", range(20))
def test_the_best_are_those_of_a_sort(rows: int, block: int, seed: int) -> None:
    """Another order, among ties or of what overflowed, decodes other tokens."""
    draw = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 9, (rows, block), generator=draw).float() / 8
    odd = torch.rand(rows, block, generator=draw)
    score[odd < 0.05], score[odd > 0.9], score[odd > 0.95] = -torch.inf, torch.inf, 0
    among = torch.rand(rows, block, generator=draw) < 0.6
    most = among.sum(dim=1)
    count = (torch.rand(rows, generator=draw) * (most + 1)).long().minimum(most)
    expected = [
        set(
            sorted(
                among[row].nonzero().squeeze(1).tolist(),
                key=lambda column, row=row: (-score[row, column].item(), column),
            )[: count[row]]
        )
        for row in range(rows)
    ]
    for choose in (best, best_torch):
        chosen = choose(score, among, count)
        assert [set(row.nonzero().squeeze(1).tolist()) for row in chosen] == expected
    above = torch.rand(rows, generator=draw)
    chosen = best(score, among, count, above)
    assert torch.equal(chosen, best_torch(score, among, count, above))
    higher = among & (score > above.unsqueeze(1))
    assert not (higher & ~chosen).any()
    assert torch.equal(chosen.sum(dim=1), higher.sum(dim=1).maximum(count))


@every_best
def test_what_is_no_number_goes_first(
    choose: Callable[..., torch.Tensor],
) -> None:
    """A broken logit would be decoded at another time on another device."""
    score = torch.tensor([[0.5, torch.nan, torch.inf, torch.nan]])
    among = torch.tensor([[True, True, True, True]])
    for count, expected in ((1, [1]), (2, [1, 3]), (3, [1, 2, 3])):
        chosen = choose(score, among, torch.tensor([count]))
        assert chosen[0].nonzero().squeeze(1).tolist() == expected


@every_best
def test_a_view_is_chosen_from_as_its_copy_is(
    choose: Callable[..., torch.Tensor],
) -> None:
    """C++ reads rows one after the other; those of a slice are further apart."""
    score, among = torch.rand(5, 8)[:, ::2], (torch.rand(8, 5) < 0.5).T[:, 1:5]
    count = among.sum(dim=1) // 2
    expected = choose(score.contiguous(), among.contiguous(), count)
    assert torch.equal(choose(score, among, count), expected)


@pytest.mark.parametrize(("rows", "block"), SHAPES)
def test_the_quota_is_the_same_in_every_implementation(rows: int, block: int) -> None:
    """Ranks of a server may run either; they would decode different tokens."""
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        masked = torch.rand(rows, block, generator=draw) < 0.6
        length = torch.randint(1, block + 1, (rows,), generator=draw)
        step = torch.randint(0, 2 * block, (rows,), generator=draw)
        steps = torch.randint(1, 2 * block + 1, (rows,), generator=draw)
        arguments = masked, length, step, steps
        count = quota_torch(*arguments)
        assert torch.equal(quota(*arguments), count)
        score = torch.randint(0, 9, (rows, block), generator=draw).float() / 8
        for above in (None, torch.rand(rows, generator=draw)):
            chosen = best_of_quota(score, *arguments, above)
            assert torch.equal(chosen, best_torch(score, masked, count, above))
