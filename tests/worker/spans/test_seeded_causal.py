"""Rows of attention of a causal model with seeded blocks, against a dense mask."""

import random

import numpy as np
import pytest
import torch

from tests.worker.spans.batches import a_batch
from tests.worker.spans.test_block_causal import seen_by_rows
from vllm_dllm.worker.spans.seeded_causal import mixed_rows


def seen_by_definition(
    spans: list[tuple[int, int]], causal: list[bool], width: int
) -> torch.Tensor:
    queries = [
        (request, position)
        for request, (start, length) in enumerate(spans)
        for position in range(start, start + length)
    ]
    mask = torch.zeros(len(queries), len(spans) * width).bool()
    for query, (request, position) in enumerate(queries):
        start, length = spans[request]
        keys = position + 1 if causal[request] else start + length
        mask[query, request * width : request * width + keys] = True
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_known_tokens_see_those_before_and_a_block_all_of_itself(seed: int) -> None:
    """A key more or less, of any request, gives other tokens than the authors'."""
    rng = random.Random(seed)
    spans = [(rng.randrange(40), rng.randint(1, 20)) for _ in range(rng.randint(2, 6))]
    causal = [rng.random() < 0.5 for _ in spans]
    num_tokens = sum(length for _, length in spans)
    width = max(start + length for start, length in spans)
    rows = mixed_rows(a_batch(spans, 0), np.array(causal), width)
    assert not rows.causal
    assert torch.equal(
        seen_by_rows(rows, num_tokens, width), seen_by_definition(spans, causal, width)
    )
