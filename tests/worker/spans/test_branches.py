"""Second branches: the pages that each token reads are those of its own branch."""

import random
from dataclasses import dataclass
from math import ceil

import numpy as np
import pytest
import torch

from tests.worker.blocks import add_full, gather, take_step
from tests.worker.desk import Desk
from tests.worker.spans.batches import a_batch, have_types_of_backends, owners
from vllm_dllm.worker.spans.branches import guided_rows, place_branches
from vllm_dllm.worker.spans.full_attention import FullAttentionLayout
from vllm_dllm.worker.spans.rows import AttentionRows

PAGE = 4


@dataclass
class Guided:
    """A request that may be guided: where it lies, what it forwards."""

    end: int
    branch: int
    """0: not guided."""
    start: int = 0

    @property
    def length(self) -> int:
        if not self.branch:
            return self.end - self.start
        if self.start == 0:
            return self.branch + self.end
        return 2 * (self.stop - self.start)

    stop: int = 0
    """Where a cached step ends."""

    def queries(self) -> list[int]:
        """First page position of the branch of each token; -1: nobody's."""
        if not self.branch:
            return [0] * self.length
        if self.start == 0:
            gap = self.branch - self.end
            return [0] * self.end + [-1] * gap + [self.branch] * self.end
        half = self.stop - self.start
        return [0] * half + [self.branch] * half

    def places(self) -> list[tuple[int, int]]:
        """Of each token where its keys lie: in the first branch, in the second; -1 in
        the other one."""
        stop = self.stop if self.branch and self.start else self.end
        first = range(
            self.start, self.branch if self.branch and not self.start else stop
        )
        second = (
            range(self.branch + self.start, self.branch + stop) if self.branch else []
        )
        return [(place, -1) for place in first] + [(-1, place) for place in second]


def check_guided(requests: list[Guided]) -> AttentionRows:
    """Compare the pages that each token reads with those of its branch."""
    batch = a_batch([(r.start, r.length) for r in requests], padding=1)
    ends_np = np.array([r.end for r in requests])
    offset_np = np.array([r.branch for r in requests])
    length = torch.tensor([r.length for r in requests])
    owner = torch.repeat_interleave(length)
    offset = torch.from_numpy(offset_np)
    branches = place_branches(
        batch, ends_np, offset_np, offset, torch.ones(len(requests)), owner
    )
    placed = [place for request in requests for place in request.places()]
    assert batch.positions.tolist() == [max(place) for place in placed]
    assert branches.unconditional.tolist() == [second >= 0 for _, second in placed]
    lengths_np = batch.num_scheduled_tokens[: len(requests)]
    made = guided_rows(lengths_np, branches, ends_np, PAGE)
    rows = AttentionRows.of_table(made, torch.device("cpu"))
    pages = max(ceil((r.branch + r.end) / PAGE) for r in requests) + 1
    # Pages of all requests differ, and are in no order.
    shuffled = torch.randperm(len(requests) * pages, generator=torch.manual_seed(0))
    table = shuffled.view(len(requests), pages)
    tables = rows.block_table(table)
    assert tables.shape == (rows.num_rows, pages)
    assert rows.query_start_device.tolist() == rows.query_start.tolist()
    seen = []
    for index, keys in enumerate(rows.seq_lens.tolist()):
        first, last = rows.query_start[index : index + 2].tolist()
        assert 0 < last - first <= rows.max_query_len
        assert keys <= rows.max_seq_len
        read = [(int(tables[index, k // PAGE]), k % PAGE) for k in range(keys)]
        seen += [read] * (last - first)
    expected: list[list[tuple[int, int]] | None] = []
    for index, request in enumerate(requests):
        for branch in request.queries():
            keys = range(branch, branch + request.end)
            read = [(int(table[index, k // PAGE]), k % PAGE) for k in keys]
            expected.append(None if branch < 0 else read)
    assert len(seen) == len(expected)
    for got, wanted in zip(seen, expected, strict=True):
        if wanted is not None:
            assert got == wanted
    return rows


@pytest.mark.parametrize(
    ("requests", "owner"),
    [
        ([Guided(10, 12)], [0, 0, 0]),  # a refresh, with a gap between the branches
        ([Guided(12, 12)], [0, 0]),  # without
        ([Guided(14, 16, start=9, stop=12)], [0, 0]),  # a step of a dual cache
        ([Guided(14, 16, start=9, stop=14)], [0, 0]),  # of a prefix cache
        ([Guided(7, 0), Guided(5, 8), Guided(9, 0, start=6)], [0, 1, 1, 1, 2]),
        ([Guided(1, 4, start=0)], [0, 0, 0]),
    ],
)
def test_a_branch_sees_its_own_pages_alone(
    requests: list[Guided], owner: list[int]
) -> None:
    """The unconditional branch would see the prompt, or nothing of the answer."""
    rows = check_guided(requests)
    assert owners(rows) == owner


@pytest.mark.parametrize("seed", range(20))
def test_guided_requests_mix_with_others(seed: int) -> None:
    """A row too many shifts all that follow it."""
    rng = random.Random(seed)
    requests = []
    for _ in range(rng.randint(1, 5)):
        end = rng.randint(2, 30)
        branch = rng.choice([0, ceil(end / PAGE) * PAGE])
        start = rng.choice([0, rng.randint(1, end - 1)])
        requests.append(Guided(end, branch, start, stop=rng.randint(start + 1, end)))
        if not branch:
            requests[-1].start = min(start, end - 1)
    check_guided(requests)


def test_guided_rows_have_the_types_of_others() -> None:
    """A kernel reads int64 lengths as twice as many int32 ones."""
    rows = check_guided([Guided(10, 12), Guided(5, 0)])
    assert rows.owner is not None and have_types_of_backends(rows)
    tables = rows.block_table(torch.zeros(2, 9, dtype=torch.int32))
    assert tables.dtype == torch.int32


@pytest.mark.parametrize("requests", [1, 5, 16])
def test_no_batch_of_branches_has_more_rows_than_buffers_are_made_for(
    requests: int,
) -> None:
    """A backend writes a number for each row, and there is no room behind the last."""
    rows = check_guided([Guided(10, 12)] * requests)
    config = Desk("full").config
    assert rows.num_rows == FullAttentionLayout.max_rows(config, requests, 512)


def test_the_cells_of_guided_requests_are_named() -> None:
    """Guidance of an unguided request, or of a neighbour's rows, changes its tokens."""
    desk = Desk("full")
    a = add_full(desk, "a", 0, (5, 3, 8))
    b = add_full(desk, "b", 1, (5, 4, 9), cfg_scale=1.0)
    c = add_full(desk, "c", 2, (5, 2, 7))
    take_step(desk, [b], [5], [{2: 7}])
    for whole_blocks, columns in ((False, [0, 1, 3]), (True, [0, 1, 2, 3])):
        desk.slots.canvas.whole_blocks = whole_blocks
        batch = gather(desk, [a, b, c], [5, 5, 5])
        rows = batch.guided_rows()
        cells = zip(*(part[rows].tolist() for part in batch.cell), strict=True)
        assert list(cells) == [(1, column) for column in columns]


def test_the_unconditional_branch_follows_its_half_of_the_span() -> None:
    """Rows of another position would guide the tokens."""
    requests = [Guided(13, 16), Guided(13, 16, start=9, stop=13)]
    batch = a_batch([(r.start, r.length) for r in requests])
    branch = torch.tensor([16, 16])
    owner = torch.repeat_interleave(torch.tensor([29, 8]))
    ends = np.array([13, 13])
    branches = place_branches(batch, ends, branch.numpy(), branch, torch.ones(2), owner)
    assert branches.follows.tolist() == [16, 4]
    assert branches.half_np.tolist() == [13, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_guidance_moves_the_guided_rows_alone(dtype: torch.dtype) -> None:
    """An unguided neighbour would be moved too, or moved by another's scale."""
    batch = a_batch([(0, 16 + 13), (0, 7), (9, 8)])
    offset_np, ends_np = np.array([16, 0, 16]), np.array([13, 7, 13])
    scale = torch.tensor([0.5, 0.0, 2.0])
    owner = torch.repeat_interleave(torch.tensor([29, 7, 8]))
    branches = place_branches(
        batch, ends_np, offset_np, torch.from_numpy(offset_np), scale, owner
    )
    assert branches.guided_np.tolist() == [True, False, True]
    logits = torch.randn(7, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    whose = [0, 1, 2, 2]
    expected = logits[:4].double()
    for second, row in enumerate((0, 2, 3)):
        unconditional = logits[4 + second].double()
        away = (float(scale[whose[row]]) + 1) * (expected[row] - unconditional)
        expected[row] = unconditional + away
    rows = torch.tensor([0, 2, 3])
    guided = branches.guide(logits, rows, torch.tensor(whose)[rows])
    assert guided.dtype == dtype and guided.shape == (4, 6)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    assert torch.allclose(guided.double(), expected, atol=tolerance)
