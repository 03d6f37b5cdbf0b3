"""Bits of a grammar, against a plain loop over requests and tokens."""

import random

import numpy as np
import pytest
import torch
from vllm.v1.core.sched.output import GrammarOutput

from tests.worker.blocks import input_batch_of
from tests.worker.desk import MASK, Desk
from vllm_dllm.worker.grammar import exclude_ungrammatical

BLOCK, VOCAB, SLOTS = 8, 70, 6
WORDS = -(-VOCAB // 32)


def bits_of(tokens: set[int]) -> list[int]:
    words = [0] * WORDS
    for token in tokens:
        words[token // 32] |= 1 << token % 32
    return [word - (1 << 32) if word >> 31 else word for word in words]


@pytest.mark.parametrize("whole_blocks", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_the_first_masks_of_its_requests_lose_what_it_does_not_allow(
    whole_blocks: bool, seed: int
) -> None:
    """On a GPU rows are those of whole blocks, on CPU those of masks; a request in the
    middle of its prompt has none, and vLLM sends a row of bits for it all the same."""
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
    bits, allowed = [], {}
    for index in with_grammar:
        allowed[index] = set(rng.sample(range(VOCAB), 9)) - {MASK}
        bits.append(bits_of(allowed[index]))
        bits += [[-1] * WORDS] * (max(1, int(num_drafts[index])) - 1)
    grammar = GrammarOutput(
        [req_ids[index] for index in with_grammar], np.array(bits, dtype=np.int32), None
    )

    rows = list(zip(*(part.tolist() for part in batch.cell), strict=True))
    logits = torch.randn(len(rows), VOCAB)
    expected = logits.clone()
    for row, (index, column) in enumerate(rows):
        first = known[index] % BLOCK
        if index in allowed and active[index] and column == first:
            for token in set(range(VOCAB)) - allowed[index]:
                expected[row, token] = -torch.inf
    exclude_ungrammatical(logits, batch, grammar, req_ids, num_drafts)
    assert torch.equal(logits, expected)
