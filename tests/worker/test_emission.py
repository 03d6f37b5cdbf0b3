"""Which tokens of several blocks leave, against a plain loop."""

import random
from typing import Any

import pytest
import torch

from tests.worker.desk import MASK, Desk, batch_of
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.emission import emit

BLOCK = 4


def random_batch(rng: random.Random) -> tuple[Desk, CanvasBatch, list[Any]]:
    """Requests somewhere in their answers, with any tokens in their blocks."""
    desk = Desk("block-causal", slots=5, block=BLOCK)
    requests = []
    for index in range(rng.randint(1, 5)):
        fields = {"buffer_size": rng.choice((1, 2, 3, 5))}
        prompt = [5] * rng.randint(1, 9)
        asked = desk.add(f"r{index}", prompt, fields, max_tokens=rng.randint(1, 30))
        requests.append(asked)
    table = desk.slots.canvas.tokens.values
    share = rng.choice((0.0, 0.2, 0.5))
    masked = torch.rand(table.shape, generator=torch.manual_seed(rng.randrange(99)))
    table[:] = torch.arange(table.numel()).view(table.shape) % MASK
    table[masked < share] = MASK
    planned = [request.span() for request in requests]
    known = torch.tensor([request.known for request in requests])
    spans = desk.slots.layout.lay_out(batch_of(requests, planned), known)
    return desk, desk.sampler.gather(spans)[0], requests


@pytest.mark.parametrize("seed", range(60))
def test_what_leaves_is_known_and_stable_up_to_the_first_gap(seed: int) -> None:
    """A token behind a gap that leaves is told in the wrong place."""
    rng = random.Random(seed)
    desk, batch, requests = random_batch(rng)
    done = torch.tensor([rng.random() < 0.7 for _ in range(len(batch.tokens))])
    emission = emit(batch, done, desk.slots.canvas)
    for index, request in enumerate(requests):
        expected: list[int] = []
        whole = True
        for block in batch.blocks_of(index):
            first = max(0, request.known - int(batch.start[block]))
            columns = range(min(first, BLOCK), int(batch.length[block]))
            left = [c for c in columns if bool(batch.masked[block, c])]
            leaves = whole and bool(batch.active[block] & done[block])
            stop = left[0] if left else int(batch.length[block])
            if leaves:
                cells = range(columns.start, stop)
                expected += [int(batch.tokens[block, c]) for c in cells]
            whole = leaves and not left
            assert bool(emission.finished[block]) == whole
        count = int(emission.count[index])
        expected = expected[: request.end - request.known]
        assert count == len(expected)
        assert emission.tokens[index, :count].tolist() == expected
