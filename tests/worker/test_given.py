"""Tokens that requests give in the midst of their canvases."""

import random

import pytest

from tests.worker.desk import FAMILIES_AND_RULES, MASK, Desk, Running, TableLogits
from tests.worker.wishes import a_canvas, a_prompt
from vllm_dllm.request import OF_OTHER_BLOCKS

Told = tuple[list[int], list[float], list[int]]
"""Of a request: tokens, their logprobs, the steps that decided them."""
RULES = [
    (family, rule)
    for family, rule in FAMILIES_AND_RULES
    if family in ("full", "shifted") and rule not in OF_OTHER_BLOCKS
]


def add(desk: Desk, name: str, rule: str, rng: random.Random) -> Running:
    length = rng.randint(1, 16)
    fields = {
        "algorithm": rule,
        "block_length": rng.randint(1, 9),
        "cache": rng.choice(("none", "prefix", "dual")),
        "canvas_token_ids": a_canvas(rng, length),
        "return_trajectory": True,
    }
    prompt = a_prompt(rng)
    return desk.add(name, prompt, fields, max_tokens=length, logprobs=1)


def canvas_of(request: Running) -> list[int]:
    return request.params.extra_args["dllm_canvas_token_ids"]


def run(desk: Desk, seed: int, chance: random.Random | None = None) -> Told:
    """What is told of request "a", which is preempted now and then by `chance`."""
    values: list[float] = []
    trajectory: list[int] = []
    request = desk.running["a"]
    while "a" in desk.running:
        step = desk.step(TableLogits(seed))
        trajectory += desk.sampler.take_report().trajectories.get("a", [])
        handed = step.output.logprobs_tensors
        if handed is not None and step.input_batch.req_ids[0] == "a":
            count = int(step.output.num_sampled[0])
            values += handed.logprobs[:count, 0].tolist()
        if chance is not None and "a" in desk.running and chance.random() < 0.4:
            desk.preempt("a")
    return request.answer, values, trajectory


@pytest.mark.parametrize(("family", "rule"), RULES)
def test_what_is_given_stays_and_all_gaps_are_filled(family: str, rule: str) -> None:
    """A rule that revises, or takes the place of a mask, would answer another text than
    was asked about."""
    for seed in range(6):
        desk = Desk(family)
        request = add(desk, "a", rule, random.Random(seed))
        tokens, values, trajectory = run(desk, seed)
        given = canvas_of(request)[: len(tokens)]
        assert len(tokens) == request.params.max_tokens == len(trajectory)
        for token, own, value, step in zip(
            tokens, given, values, trajectory, strict=True
        ):
            assert token == own or own == -1
            assert token != MASK
            assert (step == -1) == (own >= 0)
            assert own == -1 or value == 0


@pytest.mark.parametrize(("family", "rule"), RULES)
def test_gaps_are_filled_alike_alone_beside_others_and_after_preemptions(
    family: str, rule: str
) -> None:
    """Given tokens of a neighbour, or of the slot's last owner, are others."""
    for seed in range(3):
        told = []
        for beside, preempts in ((False, False), (True, False), (True, True)):
            desk, rng = Desk(family), random.Random(seed)
            add(desk, "a", rule, rng)
            if beside:
                add(desk, "b", rule, rng)
                desk.add("c", a_prompt(rng), max_tokens=9)
            told.append(run(desk, seed, random.Random(seed) if preempts else None))
        assert told[0] == told[1]
        assert told[0][0] == told[2][0] and told[0][2] == told[2][2]
