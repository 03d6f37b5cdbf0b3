"""The blocks of a step, against a plain loop."""

import random

import numpy as np
import pytest
import torch

from vllm_dllm.worker.spans.block_rows import lay_rows


@pytest.mark.parametrize("seed", range(30))
def test_blocks_follow_each_other_from_the_front(seed: int) -> None:
    """A row counted for the wrong request gives its block to all that follow."""
    rng = random.Random(seed)
    number = rng.randint(1, 6)
    block = [rng.randint(1, 8) for _ in range(number)]
    origin = [rng.choice((0, 5)) for _ in range(number)]
    sizes = [rng.choice((1, 1, 2, 3, 16)) for _ in range(number)]
    first = [o + b * rng.randint(0, 9) for o, b in zip(origin, block, strict=True)]
    left = [b * rng.randint(1, n) for b, n in zip(block, sizes, strict=True)]
    end = [f + rng.randint(1, 20 * b) for f, b in zip(first, block, strict=True)]
    rows = lay_rows(
        np.array(sizes),
        np.array(left),
        np.array(block),
        (torch.tensor(origin), torch.tensor(block), torch.tensor(end)),
        torch.tensor(first),
        torch.tensor(sizes),
    )
    expected = [(i, k) for i, size in enumerate(sizes) for k in range(size)]
    assert rows.owner.tolist() == rows.owner_np.tolist() == [i for i, _ in expected]
    starts = [first[i] + k * block[i] for i, k in expected]
    assert rows.start.tolist() == starts
    assert rows.is_front.tolist() == [k == 0 for _, k in expected]
    assert rows.length.tolist() == [
        len(range(start, min(start + block[i], end[i])))
        for (i, _), start in zip(expected, starts, strict=True)
    ]
    assert rows.logit_rows_np.tolist() == [
        block[i] if (k + 1) * block[i] <= left[i] else 0 for i, k in expected
    ]
    assert (
        rows.begin.tolist()
        == rows.begin_np.tolist()
        == [expected.index((i, 0)) for i in range(number)]
    )
    # Each of a request's blocks has a place of its own, wherever the front is.
    for i, size in enumerate(sizes):
        own = rows.place[rows.owner == i].tolist()
        assert sorted(own) == list(range(size))
        places = (rows.start[rows.owner == i] - origin[i]) // block[i] % size
        assert own == places.tolist()
