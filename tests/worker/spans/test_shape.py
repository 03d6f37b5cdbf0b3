"""The shape of a step is found once for the steps of a block."""

import pytest

from tests.worker.desk import Desk, Step, TableLogits

LOGITS = TableLogits(seed=0)


def first_step(desk: Desk, block_length: int) -> Step:
    """Of a request in slot 0 that forwards as many positions as any other here."""
    desk.running.clear()
    asked = {"block_length": block_length, "cache": "none"}
    desk.add("a", [5, 6, 7], asked, slot=0, max_tokens=8)
    return desk.step(LOGITS)


@pytest.mark.parametrize(("before", "after"), [(4, 8), (8, 4)])
def test_a_slot_that_gets_another_request_gets_its_blocks(
    before: int, after: int
) -> None:
    """A request would be decoded in blocks as long as those of the one before it."""
    desk = Desk("full")
    first = first_step(desk, before).spans
    second = first_step(desk, after).spans
    assert first.owner.tolist() == second.owner.tolist()
    assert (first.width, second.width) == (before, after)
    assert second.rows_np.tolist() == [after]


def test_steps_of_a_block_share_their_shape() -> None:
    """Without that a step finds again what has not changed, and a GPU is sent it."""
    desk = Desk("block-causal", block=4)
    desk.add("a", [5, 6, 7, 8], {"algorithm": "sequential"}, max_tokens=8)
    _, one, two = (desk.step(LOGITS).spans for _ in range(3))
    assert one.owner is two.owner and one.decides is two.decides
