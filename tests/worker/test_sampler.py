"""A step of the sampler: which positions are written, from which rows, and what of it
is told."""

import random

import pytest
import torch

from tests.worker.desk import EOS, FAMILIES, MASK, VOCAB, Desk, random_logits
from vllm_dllm.decoding.registry import RULES

CACHES = ("none", "prefix", "dual")


def a_prompt(rng: random.Random, longest: int = 12) -> list[int]:
    return [rng.randrange(3, MASK) for _ in range(rng.randint(1, longest))]


def wishes(rng: random.Random, family: str) -> dict[str, object]:
    """Random `dllm_*` fields, but for the rule's own."""
    if family == "block-causal":
        return {}
    fields: dict[str, object] = {"cache": rng.choice(CACHES)}
    fields["block_length"] = rng.randint(1, 9)
    if rng.random() < 0.3:
        fields["cfg_scale"] = 1.5
    if rng.random() < 0.3:
        fields["suffix_token_ids"] = a_prompt(rng, 5)
    return fields


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_position_without_a_row_is_never_written(rule: str, cache: str) -> None:
    """With shifted logits no row of a cached step predicts the first position of its
    block: a rule that revises would rewrite it from its neighbour's row."""
    desk = Desk("shifted")
    fields = {"algorithm": rule, "cache": cache, "block_length": 4}
    if rule == "joint_threshold":
        fields["edit_threshold"] = 0.0
    request = desk.add("a", [5, 6, 7], fields, max_tokens=12)
    logits, cached = random_logits(0), 0
    while desk.running:
        block = request.plan.grid.start_of(request.known)
        before = desk.slots.canvas.tokens.values[request.slot, 0].item()
        step = desk.step(logits)
        start = int(step.spans.start[0])
        if start > 0:
            cached += 1
            assert start == block and int(step.batch.tokens[0, 0]) == before != MASK
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
        desk.add(name, a_prompt(rng), wishes(rng, family), max_tokens=rng.randint(1, 20))
    for step in desk.run(random_logits(seed)):
        assert len(step.rows) <= len(step.token_ids)
        assert step.rows.max() < len(step.token_ids)


@pytest.mark.parametrize("whole_blocks", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_whole_blocks_give_the_same_tokens(
    family: str, whole_blocks: bool
) -> None:
    """A GPU computes rows that a CPU leaves out: none of them may be taken for
    another's."""
    rng = random.Random(1)
    table = torch.randn(200, VOCAB, generator=torch.Generator().manual_seed(2)) * 3
    answers = []
    for whole in (whole_blocks, False):
        desk, rng = Desk(family), random.Random(1)
        desk.slots.canvas.whole_blocks = whole
        requests = [
            desk.add(name, a_prompt(rng), wishes(rng, family), max_tokens=11)
            for name in "abcd"
        ]
        while desk.running:
            # The logits of a row are those of its position and the step.
            step = desk.step(lambda rows: table[: max(rows, 1)][:rows] * 0)
            del step
        answers.append([request.answer for request in requests])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_the_models_own_with_every_rule(family: str, rule: str) -> None:
    """A rule that adds to logits would report its own wishes."""
    desk = Desk(family)
    fields = {"algorithm": rule} | ({} if family == "block-causal" else {"cache": "dual"})
    desk.add("a", [5, 6, 7], fields, max_tokens=12, logprobs=VOCAB)
    of_step: list[dict[int, list[float]]] = []
    draw = random_logits(3, 1.0)
    kept: list[torch.Tensor] = []

    def logits(rows: int) -> torch.Tensor:
        kept.append(draw(rows))
        return kept[-1].clone()

    slot, told = desk.running["a"].slot, 0
    for step in desk.run(logits):
        values = kept[-1].double().clone()
        values[:, MASK] = -torch.inf
        own = values.log_softmax(1)
        columns = step.batch.cell[1].tolist()
        of_step.append({c: own[row].tolist() for row, c in enumerate(columns)})
        handed, batch = step.output.logprobs_tensors, step.batch
        assert handed is not None
        for row, column in enumerate(
            range(int(batch.first[0]), int(batch.first[0]) + len(handed.logprobs))
        ):
            # The steps of this block are the last ones.
            ago = int(batch.step[0]) - int(batch.decided_at[0, column])
            expected = of_step[len(of_step) - 1 - ago][column]
            ids = handed.logprob_token_ids[row].tolist()
            wanted = [expected[t] for t in ids]
            assert handed.logprobs[row].tolist() == pytest.approx(wanted, abs=1e-4)
            told += 1
    assert told == 12 and slot not in desk.slots.logprobs.kept


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(8))
def test_a_preempted_request_goes_on_as_if_nothing_had_been(
    family: str, seed: int
) -> None:
    """What is left behind of a block, or comes back with it of another, changes the
    tokens: of every rule, with logprobs."""
    rng = random.Random(seed)
    wanted = []
    for rule in RULES:
        fields = wishes(rng, family) | {"algorithm": rule}
        wanted.append((a_prompt(rng), fields, rng.randint(4, 12)))
    answers = []
    for preempts in (False, True):
        alone = []
        for prompt, fields, max_tokens in wanted:
            desk, chance = Desk(family), random.Random(seed)
            request = desk.add(
                "a", prompt, fields, max_tokens=max_tokens, logprobs=2, seed=3
            )
            logits = random_logits(seed)
            while desk.running:
                desk.step(logits)
                if preempts and desk.running and chance.random() < 0.5:
                    preempt(desk, request)
            alone.append(request.answer)
        answers.append(alone)
    # Without keys that are made again, a step less is drawn: compare the rest.
    caches = [fields.get("cache", "none") for _, fields, _ in wanted]
    for cache, before, after in zip(caches, *answers, strict=True):
        if cache == "none":
            assert before == after


def preempt(desk: Desk, request: object) -> None:
    """Take the slot from a request, give it to another, and let the first go on."""
    raise NotImplementedError


@pytest.mark.parametrize("family", FAMILIES)
def test_an_end_token_of_the_model_is_no_mask(family: str) -> None:
    """Ends are for the scheduler; here they are tokens as others."""
    desk = Desk(family)
    request = desk.add("a", [4, 5], max_tokens=7)

    def logits(rows: int) -> torch.Tensor:
        values = torch.zeros(rows, VOCAB)
        values[:, EOS] = 9
        return values

    desk.run(logits)
    assert request.answer == [EOS] * 7
