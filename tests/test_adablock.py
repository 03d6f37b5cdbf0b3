"""AdaBlock on a real engine: blocks that end where the text does."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.engines import Engine, sampling_params, tokens_of, uses
from tests.full_attention import CACHES, case_of
from tests.golden_cases import (
    Case,
    differences,
    golden_cases,
    too_many_forwards,
)

pytestmark = pytest.mark.timeout(400)
ENGINES = ("adablock-llada", "adablock-dream")


def random_cases(engine: Engine, seed: int, count: int) -> list[Case]:
    """Answers of any length, many tokens that end a block, and none, all caches."""
    rng = random.Random(seed)
    cases = []
    for number in range(count):
        ids = rng.sample(range(2, 255), rng.choice((1, 20, 120)))
        case = case_of(
            engine,
            rng.randint(1, 70),
            rng.choice((1, 3, 17, 33, 64, 90)),
            rng.choice((1, 7, 16, 32)),
            "adablock",
            threshold=rng.choice((0.2, 0.5, 0.9)),
            cache=CACHES[number % 3],
        )
        if number % 5:
            sure = rng.choice((0.0, 0.1, 0.3))
            case = replace(case, delimiter_ids=ids, delimiter_threshold=sure)
        cases.append(case.answered())
    return cases


def neighbours(engine: Engine) -> list[Case]:
    """Requests of other rules, whose blocks lie on a grid."""
    dream = engine.spec.checkpoint == "adablock-dream-pub0"
    rule = "maskgit_plus" if dream else "low_confidence"
    return [
        case_of(engine, length, 24, 8, rule, steps=12, cache=cache).answered()
        for length in (9, 40)
        for cache in ("prefix", "dual")
    ]


def failures(cases: Sequence[Case], outputs: list[Any]) -> list[str]:
    return differences(list(cases), [tokens_of(output) for output in outputs])


@uses(*ENGINES)
def test_random_requests_answer_as_the_reference(engine: Engine) -> None:
    """Blocks of one token, of the whole answer and past their default length; beside
    them requests that know where their blocks end."""
    cases = [*random_cases(engine, 1, 45), *neighbours(engine)]
    outputs = engine.ask(cases)
    assert failures(cases, outputs) == []
    assert too_many_forwards(cases, list(map(engine.forwards, outputs))) == []
    alone = [engine.ask([case])[0] for case in cases[::5]]
    assert failures(cases[::5], alone) == []


@uses(*ENGINES)
def test_a_preempted_block_ends_where_it_ended(engine: Engine) -> None:
    """Its end was found by a step that is not taken again."""
    cases = [*random_cases(engine, 2, 12), *neighbours(engine)]
    cases += golden_cases(engine.spec.checkpoint)
    for every in (2, 3):
        outputs = engine.ask_preempting([(case, {}) for case in cases], every)
        assert failures(cases, outputs) == []


@uses(*ENGINES)
def test_a_gap_is_filled_as_by_the_reference(engine: Engine) -> None:
    """The text after the answer is seen by every refresh, and is no place to end."""
    cases = [
        replace(case, suffix=[5, 6, 7, 8, 9], tokens=None).answered()
        for case in random_cases(engine, 3, 9)
    ]
    assert failures(cases, engine.ask(cases)) == []


@uses(*ENGINES)
def test_a_block_leaves_when_all_of_it_is_decoded(engine: Engine) -> None:
    """The next block would begin at a token that this one has not decoded."""
    from vllm.sampling_params import RequestOutputKind

    core = engine.llm.llm_engine
    for case in golden_cases(engine.spec.checkpoint)[::5]:
        params = sampling_params(case, {"output_kind": RequestOutputKind.DELTA})
        prompt, pieces = {"prompt_token_ids": case.prompt}, []
        core.add_request(f"whole-{next(engine.numbers)}", prompt, params)
        while core.has_unfinished_requests():
            pieces += [len(tokens_of(output)) for output in core.step()]
        assert pieces == list(case.blocks), str(case)


@uses("llada-tp2", "dream-tp2")
def test_the_ranks_and_the_scheduler_end_a_block_alike(engine: Engine) -> None:
    """Its end travels to the process of the scheduler with a rank's output."""
    cases = random_cases(engine, 4, 15)
    outputs = engine.ask(cases)
    assert failures(cases, outputs) == []
    assert too_many_forwards(cases, list(map(engine.forwards, outputs))) == []
