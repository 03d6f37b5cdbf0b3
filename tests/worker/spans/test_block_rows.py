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
    block, number = rng.randint(1, 8), rng.randint(1, 6)
    sizes = [rng.choice((1, 1, 2, 3, 16)) for _ in range(number)]
    first = [block * rng.randint(0, 9) for _ in range(number)]
    left = [block * rng.randint(1, size) for size in sizes]
    end = [f + block * rng.randint(1, 20) for f in first]
    rows = lay_rows(
        np.array(sizes), np.array(left), torch.tensor(first), torch.tensor(end), block
    )
    expected = [(i, k) for i, size in enumerate(sizes) for k in range(size)]
    assert rows.owner.tolist() == rows.owner_np.tolist() == [i for i, _ in expected]
    starts = [first[i] + k * block for i, k in expected]
    assert rows.start.tolist() == starts
    assert rows.is_front.tolist() == [k == 0 for _, k in expected]
    assert rows.is_there.tolist() == [
        start < end[i] for (i, _), start in zip(expected, starts, strict=True)
    ]
    assert rows.logit_rows_np.tolist() == [
        block if (k + 1) * block <= left[i] else 0 for i, k in expected
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
        assert own == [start // block % size for start in rows.start[rows.owner == i]]
