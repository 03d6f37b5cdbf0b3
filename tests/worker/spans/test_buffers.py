"""Which blocks are open, against a plain loop."""

import random

import pytest
import torch

from tests.worker.desk import Desk, TableLogits, batch_of

BLOCK = 4


@pytest.mark.parametrize("seed", range(60))
def test_at_most_one_block_opens_in_a_step(seed: int) -> None:
    """Two at once, or one too early, decode other tokens."""
    rng = random.Random(seed)
    desk = Desk("block-causal", slots=5, block=BLOCK)
    buffers, requests, wishes = desk.slots.buffers, [], []
    for index in range(rng.randint(1, 5)):
        fields = {
            "buffer_size": rng.choice((2, 3, 5)),
            "add_block_threshold": rng.choice((0.25, 0.5, 1.0)),
            "token_stability_threshold": rng.choice((0.0, 0.5)),
        }
        prompt = [5] * rng.randint(1, 9)
        asked = desk.add(f"r{index}", prompt, fields, max_tokens=rng.randint(1, 30))
        first = asked.plan.grid.start_of(len(prompt))
        opened = first + BLOCK * rng.randint(0, asked.plan.size)
        buffers.opened[asked.slot] = min(opened, asked.plan.grid.end)
        requests.append(asked)
        wishes.append(fields)
    values = buffers.stability.values
    values[:] = torch.rand(values.shape, generator=torch.manual_seed(seed)).round()
    before = buffers.opened.clone()
    planned = [request.span() for request in requests]
    known = torch.tensor([request.known for request in requests])
    spans = desk.slots.layout.lay_out(batch_of(requests, planned), known)
    assert spans.rows is not None
    masks = torch.tensor([rng.randint(0, BLOCK) for _ in spans.rows.owner])
    decides = torch.tensor([rng.random() < 0.8 for _ in requests])
    end = desk.slots.layout.end[spans.slot]
    found = buffers.open(spans.slot, decides, spans.rows, masks, end)
    for index, (request, fields) in enumerate(zip(requests, wishes, strict=True)):
        blocks = [k for k, o in enumerate(spans.rows.owner.tolist()) if o == index]
        first, size = int(spans.rows.start[blocks[0]]), request.plan.size
        had = (int(before[request.slot]) - first) // BLOCK
        opens = had == 0
        if 0 < had < size:
            last = blocks[had - 1]
            stability = float(values[request.slot, (first // BLOCK + had - 1) % size])
            opens = 1 - float(masks[last]) / BLOCK >= fields["add_block_threshold"]
            opens &= stability >= fields["token_stability_threshold"]
        opens &= first + had * BLOCK < request.plan.grid.end
        opens &= bool(decides[index])
        assert int(buffers.opened[request.slot]) == first + (had + opens) * BLOCK
        for order, block in enumerate(blocks):
            assert bool(found.is_open[block]) == (order < had + opens)
            share = 1 - float(masks[block - 1]) / BLOCK if order else 1.0
            assert float(found.before[block]) == share
            starts_in_prompt = first + order * BLOCK < len(request.prompt)
            assert bool(found.holds_prompt[block]) == starts_in_prompt


def test_what_is_open_goes_with_a_request_to_another_slot() -> None:
    """Opened again from the first block, an answer is decoded in other steps."""
    desk = Desk("block-causal", slots=4, block=BLOCK)
    fields = {"buffer_size": 3}
    desk.add("a", [5] * 6, fields, slot=0, max_tokens=30)
    buffers = desk.slots.buffers
    assert (int(buffers.first[0]), int(buffers.opened[0])) == (4, 8)
    buffers.first[0], buffers.opened[0] = 12, 20
    buffers.stability.values[0] = torch.tensor([0.5, 1.0, 0.25])
    desk.slots.suspend("a", 0)
    desk.add("b", [5] * 8, {"buffer_size": 16}, slot=0, max_tokens=30)
    assert (int(buffers.first[0]), int(buffers.opened[0])) == (8, 8)
    assert not buffers.stability.values[0].any()
    desk.add("a", [5] * 6, fields, slot=2, max_tokens=30)
    assert (int(buffers.first[2]), int(buffers.opened[2])) == (12, 20)
    assert buffers.stability.values[2, :3].tolist() == [0.5, 1.0, 0.25]
    assert buffers.size.tolist()[::2] == buffers.size_np.tolist()[::2] == [8, 3]


def test_a_slot_of_many_open_blocks_serves_one_block_afterwards() -> None:
    """What was open there would be looked for behind the blocks of the batch."""
    desk = Desk("block-causal", slots=2, block=BLOCK)
    desk.add("a", [5] * 4, {"buffer_size": 16}, slot=0, max_tokens=60)
    desk.slots.buffers.opened[0] = desk.slots.buffers.first[0] + 16 * BLOCK
    del desk.running["a"]
    desk.add("b", [5] * 4, slot=0, max_tokens=4)
    desk.add("c", [5] * 4, {"buffer_size": 2}, slot=1, max_tokens=4)
    desk.run(TableLogits(1))
    assert not desk.running
