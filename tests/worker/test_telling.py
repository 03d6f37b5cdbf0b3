"""What a request is told of its steps: only what it asked for, and only of itself."""

import random

import pytest

from tests.worker.desk import (
    FAMILIES,
    FAMILIES_AND_RULES,
    MASK,
    Desk,
    TableLogits,
)

WANTS = {
    "traced": "return_trajectory",
    "mapped": "return_step_maps",
    "watched": "stream_drafts",
    "whole": "return_rest",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_is_told_what_it_asked_for(family: str) -> None:
    """A trajectory is a wait for the device that its neighbours would pay for."""
    desk = Desk(family)
    for name, field in (*WANTS.items(), ("plain", None)):
        desk.add(name, [5, 6, 7], {field: True} if field else {})
    while desk.running:
        running = desk.running.keys() & WANTS.keys()
        desk.step(TableLogits(0))
        report = desk.sampler.take_report()
        assert report.trajectories.keys() == running & {"traced", "mapped"}
        assert report.drafts.keys() <= running & {"watched"}
        assert report.rests.keys() <= running & {"whole"}


@pytest.mark.parametrize(("family", "rule"), FAMILIES_AND_RULES)
def test_drafts_are_the_block_as_the_step_left_it(family: str, rule: str) -> None:
    """A page that draws them would show tokens that are not there."""
    desk, sharpness = Desk(family), random.Random(rule).choice([1.0, 3.0])
    fields = {"algorithm": rule, "stream_drafts": True, "return_trajectory": True}
    request = desk.add("a", [5, 6, 7], fields, max_tokens=11)
    logits, steps = TableLogits(2, sharpness), 0
    trajectory: list[int] = []
    while desk.running:
        known, end = request.known, request.plan.grid.end_of(request.known)
        batch = desk.step(logits).batch
        report = desk.sampler.take_report()
        assert len(report.trajectories["a"]) == request.known - known
        trajectory += report.trajectories["a"]
        if not bool(batch.active[0]):
            assert not report.drafts
            continue
        draft, steps = report.drafts["a"], steps + 1
        assert draft.start == request.known and draft.step == int(batch.step[0])
        end_of_draft = draft.start + len(draft.tokens)
        assert draft.block_ends == ([end_of_draft] if draft.tokens else [])
        column = request.known - int(batch.start[0])
        shown = batch.tokens[0].masked_fill(batch.masked[0], -1)
        tokens = shown[column : int(batch.length[0])].tolist()
        assert draft.tokens == tokens and len(tokens) == end - request.known
        written = batch.decided_at[0].eq(batch.step[0]) & ~batch.masked[0]
        places = batch.position[0, written].tolist()
        assert draft.changed == [place for place in places if known <= place < end]
    assert len(trajectory) == 11 and steps >= 3


@pytest.mark.parametrize("field", WANTS.values())
def test_a_slots_next_request_is_told_nothing(field: str) -> None:
    """It would wait for the device in every step, for what nobody reads."""
    desk = Desk("block-causal")
    for dllm, wanted in (({field: True}, 1), ({}, 0)):
        desk.add("a", [5, 6, 7], dllm, slot=2, max_tokens=5)
        told = 0
        while desk.running:
            desk.step(TableLogits(0))
            report = desk.sampler.take_report()
            told += len(report.trajectories) + len(report.drafts) + len(report.rests)
        assert (told > 0) == wanted


def test_revised_tokens_are_counted() -> None:
    """A metric that counts first writings says that a rule edits when it does not."""
    desk = Desk("block-causal")
    dllm = {"algorithm": "joint_threshold", "edit_threshold": 0.0, "threshold": 0.3}
    request = desk.add("a", [5, 6, 7], dllm, max_tokens=13)
    tokens, revised, expected = desk.slots.canvas.tokens.values, 0, 0
    while desk.running:
        before = tokens[request.slot].tolist()
        batch = desk.step(TableLogits(1)).batch
        first, after = int(batch.first[0]), batch.tokens[0].tolist()
        pairs = zip(before[first:], after[first:], strict=True)
        expected += sum(old not in (MASK, new) for old, new in pairs)
        revised += desk.sampler.take_report().revised
    assert revised >= expected > 0
