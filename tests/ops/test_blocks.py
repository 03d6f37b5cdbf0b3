"""Blocks out of their slots and back: C++ does what torch does."""

import pytest
import torch

from vllm_dllm.ops import blocks as op
from vllm_dllm.ops import extension
from vllm_dllm.ops.blocks import Kept, Places, Tables

MASK, SLOTS = 9, 12
SHAPES = [(1, 1), (1, 4), (3, 5), (8, 32)]
every = pytest.mark.parametrize(("blocks", "width"), SHAPES)


class Step:
    """Blocks of a random step, those of a slot wider than the widest of them."""

    def __init__(self, blocks: int, width: int, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.shape = blocks, width
        self.tables = Tables(
            self.number(6, MASK + 1, SLOTS, width + 3),
            self.number(0, 9, SLOTS, width + 3),
            self.number(0, 9, SLOTS, 2),
            self.number(0, 9, SLOTS, 2),
        )
        slot = torch.randperm(SLOTS, generator=self.draw)[:blocks]
        self.places = Places(slot, 0, None)
        self.start = self.number(0, 99, blocks)
        self.length = self.number(1, width + 1, blocks)
        self.first = (torch.rand(blocks, generator=self.draw) * self.length).long()
        self.active = self.flag(0.8, blocks)

    def number(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.draw)

    def flag(self, share: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.draw) < share

    def taken(self) -> list[torch.Tensor]:
        """Everything that a step gives and leaves behind."""
        known = self.start + self.first
        of_blocks = known, self.start, self.length, self.active
        found = op.gather(self.tables, self.places, *of_blocks, self.shape[1], MASK)
        kept = [part.clone() for part in found]
        written = found.masked & self.flag(0.7, *self.shape)
        candidate = self.number(0, MASK, *self.shape)
        tokens, decided_at, step, post_steps, masked, _ = found
        op.write(written, candidate, step, tokens, masked, decided_at)
        cell = written.nonzero(as_tuple=True)
        values = candidate[cell], candidate.float()[cell]
        answers = op.spread(cell, written.shape, *values)
        left = op.leave(tokens, masked, self.first, self.length, self.active)
        blocks = Kept(tokens, decided_at, step, post_steps)
        ends = self.flag(0.7, self.shape[0]), self.number(90, 110, SLOTS), MASK
        places = self.places, blocks, masked
        out = op.hand_out(self.tables, *places, *of_blocks, *ends)
        for leaving in (left, out):
            answers += [leaving.tokens, leaving.count, leaving.finished]
        answers += op.cells(written, self.start)
        return [*kept, *blocks, masked, *answers, *self.kept()]

    def kept(self) -> list[torch.Tensor]:
        """What the tables hold."""
        tables = self.tables
        return [tables.tokens, tables.decided_at, tables.step, tables.post_steps]


@every
@pytest.mark.parametrize("seed", range(10))
def test_a_step_is_the_same_in_every_implementation(
    blocks: int, width: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block would be decoded otherwise where no compiler was."""
    native = Step(blocks, width, seed).taken()
    monkeypatch.setattr(extension, "load", lambda: None)
    for one, other in zip(native, Step(blocks, width, seed).taken(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@every
def test_slots_of_others_are_left_alone(blocks: int, width: int) -> None:
    """A request would go on with the tokens of another one's block."""
    step = Step(blocks, width, seed=0)
    before = [table.clone() for table in step.kept()]
    step.taken()
    others = torch.ones(SLOTS, dtype=torch.bool)
    others[step.places.slot] = False
    for table, had in zip(step.kept(), before, strict=True):
        assert torch.equal(table[others], had[others])
    for table, had in zip(step.kept()[:2], before[:2], strict=True):
        assert torch.equal(table[:, width:], had[:, width:])
