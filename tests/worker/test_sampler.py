"""A step of the sampler: which positions are written, from which rows, and what of it
is told."""

import random

import pytest
import torch

from tests.worker.desk import (
    DELETE,
    FAMILIES,
    FAMILIES_AND_RULES,
    MASK,
    RULES_OF,
    SPLIT,
    VOCAB,
    Desk,
    TableLogits,
)
from tests.worker.wishes import a_prompt, wishes


@pytest.mark.parametrize("rule", RULES_OF["shifted"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_position_without_a_row_is_never_written(rule: str, cache: str) -> None:
    """With shifted logits no row of a cached step predicts the first position of its
    block: a rule that revises would rewrite it from its neighbour's row."""
    desk = Desk("shifted")
    fields = {"algorithm": rule, "cache": cache, "block_length": 4}
    if rule == "joint_threshold":
        fields["edit_threshold"] = 0.0
    request = desk.add("a", [5, 6, 7], fields, max_tokens=12)
    logits, cached = TableLogits(0), 0
    while desk.running:
        known, block = request.known, request.plan.grid.start_of(request.known)
        before = desk.slots.canvas.tokens.values[request.slot, 0].item()
        step = desk.step(logits)
        start = int(step.spans.start[0])
        if start > 0:
            cached += 1
            assert start == block and int(step.batch.tokens[0, 0]) == before
            assert known > block or before != MASK
        row_of = dict(zip(step.batch.cell[1].tolist(), step.rows.tolist(), strict=True))
        for column, row in row_of.items():
            assert start + row == block + column - 1
    assert cached >= 3
    assert MASK not in request.answer and len(request.answer) == 12


@pytest.mark.parametrize("whole_blocks", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(6))
def test_there_are_no_more_rows_of_logits_than_positions_forwarded(
    family: str, whole_blocks: bool, seed: int
) -> None:
    """One long block in a batch of short ones would make rows of its length for all:
    more memory than the profiling run has reserved, and the engine is gone."""
    rng = random.Random(seed)
    desk = Desk(family)
    desk.slots.canvas.whole_blocks = whole_blocks
    for name in "abcdef":
        desk.add(
            name, a_prompt(rng), wishes(rng, family), max_tokens=rng.randint(1, 20)
        )
    for step in desk.run(TableLogits(seed)):
        assert len(step.rows) <= len(step.token_ids)
        assert step.rows.max() < len(step.token_ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_rows_of_whole_blocks_give_the_same_tokens(family: str, seed: int) -> None:
    """A GPU computes rows that a CPU leaves out: none of them may be taken for
    another's."""
    answers = []
    for whole_blocks in (True, False):
        desk, rng = Desk(family), random.Random(seed)
        desk.slots.canvas.whole_blocks = whole_blocks
        requests = [
            desk.add(
                name,
                a_prompt(rng),
                wishes(rng, family) | {"algorithm": rng.choice(RULES_OF[family])},
                max_tokens=11,
                temperature=rng.choice([0, 0.7]),
            )
            for name in "abcd"
        ]
        steps = desk.run(TableLogits(seed))
        answers.append([request.answer for request in requests])
        if whole_blocks:
            rows = sum(len(step.rows) for step in steps)
    assert answers[0] == answers[1]
    assert rows > sum(len(step.rows) for step in steps)


@pytest.mark.parametrize(("family", "rule"), FAMILIES_AND_RULES)
def test_logprobs_are_the_models_own_with_every_rule(family: str, rule: str) -> None:
    """A rule that adds to logits would report its own wishes."""
    desk = Desk(family)
    fields = {"algorithm": rule} | (
        {"cache": "dual"} if desk.config.facts.full_attention else {}
    )
    desk.add("a", [5, 6, 7], fields, max_tokens=12, logprobs=VOCAB)
    logits, told = TableLogits(3, 1.0), 0
    of_model = logits.table.double().clone()
    never = [MASK, DELETE, SPLIT] if family == "moving" else [MASK]
    of_model[:, never] = -torch.inf
    of_model = of_model.log_softmax(1)
    for step in desk.run(logits):
        handed, batch = step.output.logprobs_tensors, step.batch
        if handed is None:  # keys only
            continue
        for row in range(len(handed.logprobs)):
            column = int(batch.first[0]) + row
            place = 7 * int(batch.position[0, column])
            place += 131 * int(batch.decided_at[0, column])
            ids = handed.logprob_token_ids[row].tolist()
            expected = [float(of_model[place % len(of_model), t]) for t in ids]
            assert handed.logprobs[row].tolist() == pytest.approx(expected, abs=1e-4)
            told += 1
    assert told == 12


@pytest.mark.parametrize(("family", "rule"), FAMILIES_AND_RULES)
def test_a_preempted_request_goes_on_as_if_nothing_had_been(
    family: str, rule: str
) -> None:
    """What is left behind of a block, or comes back with that of another, changes the
    tokens and what is told of them."""
    rng = random.Random(rule)
    for seed in range(2):
        fields = wishes(rng, family) | {"algorithm": rule, "return_trajectory": True}
        asked = {"max_tokens": rng.randint(4, 12), "logprobs": 2, "seed": seed}
        asked["temperature"] = rng.choice([0, 1.0])
        prompt = a_prompt(rng)
        told = []
        for preempts in (False, True):
            desk, chance = Desk(family), random.Random(seed)
            request = desk.add("a", prompt, fields, **asked)
            logits, values, trajectory = TableLogits(seed), [], []
            while desk.running:
                output = desk.step(logits).output
                trajectory += desk.sampler.take_report().trajectories.get("a", [])
                if output.logprobs_tensors is not None:
                    values += output.logprobs_tensors.logprobs.tolist()
                if preempts and desk.running and chance.random() < 0.5:
                    desk.preempt("a")
            told.append((request.answer, values, trajectory))
        assert told[0] == told[1], (seed, fields, asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_that_leaves_its_slot_leaves_nothing_there(family: str) -> None:
    """Logprobs of a whole vocabulary, or rules with long lists, would lie in memory
    until the slot is used again."""
    desk = Desk(family)
    asked = {"logprobs": VOCAB, "presence_penalty": 1.0}
    for name in "abc":
        desk.add(name, [5, 6, 7], max_tokens=5, **asked)
    desk.step(TableLogits(0))
    desk.preempt("b")
    assert len(desk.slots.logprobs.kept) == len(desk.slots.sampling.rules) == 3
    desk.run(TableLogits(0))
    slots = desk.slots
    assert not slots.logprobs.kept and not slots.sampling.rules
    assert not slots.suspended.saved


def test_guided_logprobs_are_those_of_the_guided_distribution() -> None:
    """That is the distribution that decides; the branch's own would not say how sure
    the answer was."""
    desk = Desk("full")
    desk.add("a", [5, 6, 7], {"cfg_scale": 1.5}, max_tokens=4, logprobs=0)
    logits = TableLogits(3, 1.0)
    [row, *_] = (7 * position for position in range(3, 7))
    step = desk.step(logits)
    while step.output.logprobs_tensors is None or not len(
        step.output.logprobs_tensors.logprobs
    ):
        step = desk.step(logits)
    place = row + 131 * int(step.batch.decided_at[0, 0])
    unconditional = logits.table[5].double()
    guided = unconditional + 2.5 * (logits.table[place].double() - unconditional)
    guided[MASK] = -torch.inf
    token = desk.all_token_ids[0, 3].long()
    told = step.output.logprobs_tensors.logprobs[0, 0].item()
    assert told == pytest.approx(float(guided.log_softmax(0)[token]), abs=1e-4)
