"""Full attention: what of a request its layout keeps, and the rows of its steps."""

import numpy as np
import torch

from tests.worker.blocks import add_full, gather, input_batch_of
from tests.worker.desk import Desk, TableLogits
from tests.worker.spans.batches import a_batch, owners
from vllm_dllm.worker.spans.by_plan import ByPlan
from vllm_dllm.worker.spans.full_attention import FullAttentionLayout


def layout_of(desk: Desk) -> FullAttentionLayout:
    layouts = desk.slots.layout
    assert isinstance(layouts, ByPlan)
    [layout] = [one for one in layouts.layouts if isinstance(one, FullAttentionLayout)]
    return layout


def test_a_slot_keeps_nothing_of_a_former_guided_request() -> None:
    """An unguided request would be moved away from what is in its own pages."""
    desk, slots = Desk("full"), np.array([2])
    layout = layout_of(desk)
    old = add_full(desk, "old", 2, (5, 6, 17), cache="dual", cfg_scale=1.5)
    assert not layout.is_uniform(slots) and layout.is_uniform(np.array([0, 1, 3]))
    assert int(layout.branch[2]) == int(layout.branch_np[2]) == 24
    assert float(layout.cfg_scale[2]) == 1.5
    assert bool(layout.keeps_keys[2])
    assert gather(desk, [old], [5]).spans.branches is not None
    new = add_full(desk, "new", 2, (7, 3, 13), cache="none")
    assert layout.is_uniform(slots)
    assert (int(layout.branch[2]), float(layout.cfg_scale[2])) == (0, 0.0)
    assert (int(layout.branch_np[2]), int(layout.seq_len_np[2])) == (0, 13)
    assert not bool(layout.keeps_keys[2])
    assert gather(desk, [new], [7]).spans.branches is None


def test_what_follows_a_canvas_is_its_own_requests_suffix() -> None:
    """A token of another request, or of the slot's last owner, changes the answer."""
    desk = Desk("full")
    layout, long, short = layout_of(desk), [3, 1, 4, 1, 5], [9, 2]
    a = add_full(desk, "a", 0, (5, 3, 8), suffix_token_ids=long)
    add_full(desk, "old", 1, (5, 3, 8), suffix_token_ids=long)
    b = add_full(desk, "b", 1, (5, 4, 9), suffix_token_ids=short)
    c = add_full(desk, "c", 2, (5, 2, 7))
    assert layout.given.gives.values_np[[0, 1, 2]].tolist() == [True, True, False]
    requests, known = [a, b, c], [5, 5, 5]
    batch = input_batch_of(desk, requests, known)
    spans = layout.lay_out(batch, torch.tensor(known))
    blocks, before = desk.slots.canvas.tokens.values, desk.all_token_ids
    ids = layout.token_ids(spans, blocks, before).tolist()
    assert len(ids) == 8 + 5 + 9 + 2 + 7
    assert ids[8:13] == long
    assert ids[13 + 9 : 13 + 11] == short
    for request, end in ((a, 13), (b, 11), (c, 7)):
        slot = request.slot
        assert layout.seq_len[slot] == layout.seq_len_np[slot] == end


def test_a_step_sees_the_keys_of_its_whole_sequence() -> None:
    """The runner knows no more than what it forwards: the answer would not see what
    follows its block."""
    desk = Desk("full")
    layout = layout_of(desk)
    add_full(desk, "a", 0, (5, 4, 17), cache="dual", suffix_token_ids=[3, 4])
    add_full(desk, "b", 3, (5, 4, 13), cache="none")
    desk.step(TableLogits(0), "a")
    step = desk.step(TableLogits(0))
    assert [span.length for span in step.planned] == [4, 13]
    rows = layout.attention_rows(step.input_batch, 2, step.spans)
    assert owners(rows) == [0, 1]
    assert rows.seq_lens.tolist() == [19, 13] and rows.max_seq_len == 19
    assert rows.query_start.tolist() == [0, 4, 17] and rows.max_query_len == 13


def test_a_cuda_graph_finds_the_keys_of_each_request_where_they_were() -> None:
    """A replay reads the addresses of the capture, which was of a dummy batch."""
    desk = Desk("full", slots=4)
    layout = layout_of(desk)
    dummy = layout.attention_rows(a_batch([(0, 4)] * 4), 4, None)
    assert dummy.seq_lens.tolist() == [4] * 4
    requests = [add_full(desk, name, i, (5, 4, 13)) for i, name in enumerate("ab")]
    step = desk.step(TableLogits(0), *(request.name for request in requests))
    padded = a_batch([(0, 13), (0, 13)], padding=2)
    padded.num_scheduled_tokens = padded.num_scheduled_tokens[:2]
    rows = layout.attention_rows(padded, 4, step.spans)
    assert rows.seq_lens.data_ptr() == dummy.seq_lens.data_ptr()
    assert rows.query_start_device.data_ptr() == padded.query_start_loc.data_ptr()
    assert rows.seq_lens[:2].tolist() == [13, 13]
    # What vLLM has there is its own, not to be changed.
    assert padded.seq_lens.tolist() == [13, 13, 9999, 9999]


def test_a_span_of_warm_up_sees_at_least_itself() -> None:
    """Its requests are longer than what they asked for; fewer keys than queries is
    nothing that a kernel takes."""
    desk = Desk("full")
    a = add_full(desk, "a", 0, (5, 4, 9))
    spans = gather(desk, [a], [5]).spans
    rows = layout_of(desk).attention_rows(a_batch([(0, 30)]), 1, spans)
    assert rows.seq_lens.tolist() == [30] and rows.max_seq_len == 30
