"""Bits of a grammar, against a plain loop over requests and tokens."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from vllm.v1.core.sched.output import GrammarOutput

from tests.worker.blocks import input_batch_of
from tests.worker.desk import MASK, Desk
from vllm_dllm.runs import Run
from vllm_dllm.worker.grammar import exclude_ungrammatical, show_forced

BLOCK, VOCAB, SLOTS = 8, 70, 6
WORDS = -(-VOCAB // 32)
FREE = np.arange(VOCAB) % 3 > 0


def bits_of(tokens: set[int]) -> list[int]:
    words = [0] * WORDS
    for token in tokens:
        words[token // 32] |= 1 << token % 32
    return [word - (1 << 32) if word >> 31 else word for word in words]


@pytest.mark.parametrize("whole_blocks", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_first_masks_of_its_requests_lose_what_it_does_not_allow(
    whole_blocks: bool, seed: int
) -> None:
    """On a GPU rows are those of whole blocks, on CPU those of masks; a request in the
    middle of its prompt has none, and vLLM sends a row of bits for it all the same. A
    run has one more than it has tokens, if there is room; a walk sent them with it, or
    vLLM. In free text the first row holds for all."""
    rng = random.Random(seed)
    desk = Desk("block-causal", SLOTS, BLOCK)
    desk.slots.canvas.whole_blocks = whole_blocks
    known = [rng.randrange(1, 40) for _ in range(5)]
    active = [rng.random() < 0.7 for _ in known]
    dllm = {"algorithm": "sequential"}
    requests = [
        desk.add(f"r{slot}", [5] * length, dllm, slot)
        for slot, length in zip(rng.sample(range(SLOTS), 5), known, strict=True)
    ]
    input_batch = input_batch_of(desk, requests, known, active)
    spans = desk.slots.layout.lay_out(input_batch, torch.tensor(known))
    batch, _ = desk.sampler.gather(spans)
    num_drafts = input_batch.num_draft_tokens_per_req

    req_ids = input_batch.req_ids
    with_grammar = rng.sample(range(5), 3)
    sent_by_vllm: dict[str, list[list[int]]] = {}
    allowed: dict[tuple[int, int], set[int]] = {}
    runs = spans.runs = [Run() for _ in known]
    for index in with_grammar:
        room, first = int(num_drafts[index]), known[index] % BLOCK
        tokens = (7, 8, 9, 65)[: rng.randint(0, min(room, 4))]
        is_free = rng.random() < 0.4
        bits = []
        for ahead in range(max(1, room)):
            some = set(rng.sample(range(VOCAB), rng.choice([1, 9]))) - {MASK}
            if ahead <= len(tokens) and not (is_free and ahead):
                bits.append(bits_of(some))
                if room:
                    allowed[index, first + ahead] = some
            elif is_free:
                allowed[index, first + ahead] = allowed[index, first]
        if is_free:
            runs[index] = Run(free=np.packbits(FREE, bitorder="little"))
        elif walks := room and rng.random() < 0.7:
            runs[index] = Run(tokens, bits=np.array(bits, dtype=np.int32))
        else:
            runs[index] = Run(tokens)
        if is_free or not walks:
            sent_by_vllm[req_ids[index]] = bits
    grammar = None
    if sent_by_vllm:
        words = np.array([*chain(*sent_by_vllm.values())], dtype=np.int32)
        grammar = GrammarOutput([*sent_by_vllm], words, None)

    rows = list(zip(*(part.tolist() for part in batch.cell), strict=True))
    logits = torch.randn(len(rows), VOCAB)
    expected = logits.clone()
    for row, (index, column) in enumerate(rows):
        for token in set(range(VOCAB)) - allowed.get(
            (index, column), set(range(VOCAB))
        ):
            expected[row, token] = -torch.inf
    reach = exclude_ungrammatical(logits, batch, grammar, req_ids, num_drafts)
    assert torch.equal(logits, expected)
    if reach is None:
        assert not allowed
        return
    assert set(map(tuple, reach.has_bits.nonzero().tolist())) == allowed.keys()
    for (index, column), some in allowed.items():
        ahead = column - known[index] % BLOCK
        assert reach.forced[index, column] == (len(some) == 1)
        if runs[index].free is not None:
            assert (
                reach.free is not None and reach.free[index].tolist() == FREE.tolist()
            )
        else:
            assumed = [*runs[index].tokens, -1]
            assert int(reach.assumed[index, column]) == assumed[ahead]


def test_forced_tokens_are_shown_to_the_model() -> None:
    """What comes after them would be decided without them."""
    desk = Desk("block-causal", SLOTS, BLOCK)
    known = [9, 4, 13]
    requests = [desk.add(f"r{n}", [5] * length) for n, length in enumerate(known)]
    input_batch = input_batch_of(desk, requests, known)
    spans = desk.slots.layout.lay_out(input_batch, torch.tensor(known))
    spans.runs = [Run((11, 12, 13), 2), Run((14,)), Run((15, 16, 17), 3)]
    show_forced(spans, desk.all_token_ids)
    blocks = desk.slots.canvas.tokens.values
    ids = desk.slots.layout.token_ids(spans, blocks, desk.all_token_ids)
    right = spans.position >= spans.known[spans.owner]
    canvas = [ids[right & (spans.owner == n)].tolist() for n in range(3)]
    assert canvas == [[11, 12] + [MASK] * 5, [MASK] * 4, [15, 16, 17]]
