"""What is kept of soft tokens, and what of it the model is shown."""

import torch

from tests.worker.desk import Desk, Step, TableLogits
from vllm_dllm.worker.soft_tokens import WHOLE

PROMPT = [5, 6, 7, 8, 9]
FIELDS = {"algorithm": "dmax", "threshold": 0.3}


def shares(desk: Desk, step: Step) -> torch.Tensor:
    """What the next step would show, if it forwarded the same."""
    return desk.slots.soft.shares(step.spans)


def test_a_decoded_token_is_shown_as_surely_as_it_was_found() -> None:
    """A model that is shown whole tokens never takes a wrong one back."""
    desk, logits, soft = Desk("block-causal"), TableLogits(1, 1.0), 0
    request = desk.add("a", PROMPT, FIELDS, max_tokens=11)
    while desk.running:
        step = desk.step(logits)
        found = step.batch
        shown = shares(desk, step)
        assert (shown[step.spans.position < int(found.known[0])] == WHOLE).all()
        kept = desk.slots.soft.share.values[request.slot]
        tokens = desk.slots.canvas.tokens.values[request.slot, : len(kept)]
        is_token = tokens != desk.config.mask_token_id
        if request.known > int(found.known[0]):  # the block has left
            assert (kept == WHOLE).all() and not is_token.any()
            continue
        in_canvas = found.column >= found.first[0]
        assert torch.equal(kept >= 0, is_token & in_canvas)
        assert torch.equal(shown[-len(kept) :], kept)
        soft += int((kept >= 0).sum())
    assert soft > 5 and len(request.answer) == 11


def test_tokens_of_other_rules_are_whole() -> None:
    """They would be mixed by what another request left in the slot."""
    desk, logits = Desk("block-causal"), TableLogits(1, 1.0)
    desk.add("a", PROMPT, FIELDS, slot=0, max_tokens=3)
    desk.step(logits)
    assert desk.slots.soft.share.values[0].max() >= 0
    desk.slots.release(desk.running.pop("a").slot)
    desk.add("b", PROMPT, {"algorithm": "joint_threshold"}, slot=0, max_tokens=8)
    desk.add("c", PROMPT, {"buffer_size": 3}, slot=1, max_tokens=20)
    desk.add("d", PROMPT, FIELDS, slot=2, max_tokens=8)
    for _ in range(3):
        step = desk.step(logits)
        shown = shares(desk, step)
        of_others = step.spans.owner < 2
        assert (shown[of_others] == WHOLE).all()
        assert (desk.slots.soft.share.values[:2] == WHOLE).all()
    assert not desk.slots.soft.are_in(step.spans.slot_np[:2])


def test_what_is_kept_survives_preemption() -> None:
    """The request would go on with whole tokens, and so to others."""
    desk, logits = Desk("block-causal"), TableLogits(1, 1.0)
    request = desk.add("a", PROMPT, FIELDS, max_tokens=11)
    desk.step(logits)
    before = desk.slots.soft.share.values[request.slot].clone()
    assert before.max() >= 0
    desk.preempt("a")
    assert torch.equal(desk.slots.soft.share.values[request.slot], before)
