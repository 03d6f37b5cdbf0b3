"""What grammars leave of a step: C++ does what torch does, and a plain loop."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from vllm_dllm.ops import reach as op

CPU = torch.device("cpu")
WIDTH, VOCAB = 7, 70
WORDS = -(-VOCAB // 32)


def in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, and without the extension."""
    monkeypatch.setattr(op, "load_for", lambda _: None)


both = pytest.mark.parametrize(
    "prepare", [lambda _: None, in_torch], ids=["native", "torch"]
)
Prepare = Callable[[pytest.MonkeyPatch], None]


@both
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(10))
def test_tokens_lose_their_logits_that_bits_do_not_allow(
    seed: int, kind: torch.dtype, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token would be allowed on one device and not on another. Rows may have one bit
    set, many, those at the end of a word, or all of one."""
    prepare(monkeypatch)
    rng = random.Random(seed)
    first = [rng.randrange(WIDTH) for _ in range(4)]
    cells = [(m, c) for m in range(4) for c in range(first[m], WIDTH)]
    some = rng.sample(cells, rng.randint(1, len(cells)))
    sizes = [rng.choice([1, 2, 9, VOCAB]) for _ in some]
    allowed = [set(rng.sample(range(VOCAB), size)) for size in sizes]
    allowed[0] = rng.choice([{30, 31}, {31}, set(range(32, 64))])
    words = np.zeros((len(some), WORDS), dtype=np.uint32)
    for row, tokens in enumerate(allowed):
        for token in tokens:
            words[row, token // 32] |= np.uint32(1 << token % 32)
    assumed = [rng.randrange(VOCAB) for _ in some]
    places = [[m for m, _ in some], [c - first[m] for m, c in some], assumed]
    logits = torch.randn(len(cells), VOCAB + 3).to(kind)[:, :VOCAB]
    expected = logits.clone()
    for cell, tokens in zip(some, allowed, strict=True):
        banned = [token for token in range(VOCAB) if token not in tokens]
        expected[cells.index(cell), banned] = -torch.inf
    reach = op.exclude(
        logits,
        words.view(np.int32),
        np.array(places),
        torch.tensor(first),
        (torch.tensor([m for m, _ in cells]), torch.tensor([c for _, c in cells])),
        WIDTH,
    )
    assert torch.equal(logits, expected)
    has_bits, forced = (torch.zeros(4, WIDTH, dtype=torch.bool) for _ in range(2))
    tokens_there = torch.zeros(4, WIDTH, dtype=torch.int64)
    for cell, tokens, token in zip(some, allowed, assumed, strict=True):
        has_bits[cell], forced[cell] = True, len(tokens) == 1
        tokens_there[cell] = token
    assert torch.equal(reach.has_bits, has_bits)
    assert torch.equal(reach.forced, forced)
    assert torch.equal(reach.assumed, tokens_there)


@both
@pytest.mark.parametrize("seed", range(40))
def test_a_run_is_written_as_far_as_it_holds(
    seed: int, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token whose bits were for another one before it, or behind a gap, breaks the
    grammar; if nothing is written, the request never ends."""
    prepare(monkeypatch)
    rng, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    follows = [rng.random() < 0.8 for _ in range(6)]
    first = [rng.randrange(WIDTH) for _ in follows]
    sent = [rng.randint(1, WIDTH - column) for column in first]
    shape = len(follows), WIDTH
    candidate = torch.randint(3, shape, generator=draw)
    as_assumed = torch.rand(shape, generator=draw) < 0.7
    assumed = torch.where(as_assumed, candidate, candidate + 1)
    has_bits = torch.zeros(shape, dtype=torch.bool)
    for row, (column, count) in enumerate(zip(first, sent, strict=True)):
        has_bits[row, column : column + count * follows[row]] = True
    forced = has_bits & (torch.rand(shape, generator=draw) < 0.4)
    free = torch.rand(len(follows), 3, generator=draw) < 0.5 if seed % 2 else None
    reach = op.Reach(has_bits, forced, assumed, free)
    choice = reach.to_choose_from(candidate)
    wanted = torch.rand(shape, generator=draw) < 0.5
    write = reach.from_the_left(wanted & choice, candidate)
    for row, follow in enumerate(follows):
        if not follow:
            assert choice[row].all() and torch.equal(write[row], wanted[row])
            continue
        may, written, holds, unwanted = set(), set(), True, False
        for column in range(first[row], first[row] + sent[row]):
            if not forced[row, column]:
                unwanted |= not wanted[row, column]
                holds &= not may or not unwanted
                may.add(column)
            if holds:
                written.add(column)
            token = candidate[row, column]
            if token != assumed[row, column] and (free is None or not free[row, token]):
                break
        assert set(choice[row].nonzero().flatten().tolist()) == may
        assert set(write[row].nonzero().flatten().tolist()) == written
        assert written


@pytest.mark.parametrize("length", [1, 31, 64, 70, 96, 100])
@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_bits_are_unpacked_alike(length: int, kind: type) -> None:
    """Text would be free on one device and not on another; rows may hold more bits than
    there are tokens, or fewer."""
    flags = np.random.default_rng(length).random((5, 96)) < 0.5
    words = np.packbits(flags, axis=1, bitorder="little").view(kind)
    host = op.unpacked(words, length, CPU)
    device = op.unpacked_torch(torch.tensor(words.view(np.uint8)), length)
    expected = np.zeros((5, length), dtype=bool)
    expected[:, :96] = flags[:, :length]
    assert host.dtype is device.dtype is torch.bool
    assert host.tolist() == device.tolist() == expected.tolist()
