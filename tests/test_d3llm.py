"""d3LLM's blocks on a real engine: many at once in an answer that sees itself whole."""

import random
from dataclasses import replace

import pytest

from tests.engines import Engine, tokens_of, uses
from tests.full_attention import case_of
from tests.golden_cases import (
    Case,
    differences,
    golden_cases,
    too_many_forwards,
)

pytestmark = pytest.mark.timeout(400)
BOTH = ("llada", "dream")


def random_cases(engine: Engine, seed: int, count: int) -> list[Case]:
    """Answers of any length, in blocks that open late, soon, or one after the other."""
    rng = random.Random(seed)
    cases = []
    for number in range(count):
        case = case_of(
            engine,
            rng.randint(1, 70),
            rng.choice((1, 3, 17, 40, 64)),
            rng.choice((1, 5, 8, 10, 32)),
            "d3llm",
            entropy_threshold=rng.choice((0.0, 0.5, 1.0, 2.0)),
            add_block_threshold=rng.choice((0.1, 0.3, 0.5, 1.0)),
        )
        if number % 4 == 3:
            case = replace(case, suffix=[5, 6, 7, 8, 9])
        cases.append(case.answered())
    return cases


@uses(*BOTH)
def test_random_requests_answer_as_the_reference(engine: Engine) -> None:
    """A block that opens a step late, or a token of a block that is not open; beside
    requests of other rules, whose blocks are decoded one after the other."""
    cases = [*random_cases(engine, 1, 24), *golden_cases(engine.spec.checkpoint)[::5]]
    assert len({case.nfe / case.gen_length for case in cases[:24]}) > 8
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    assert too_many_forwards(cases, list(map(engine.forwards, outputs))) == []
    outputs = engine.ask_preempting([(case, {}) for case in cases[:8]], 2)
    assert differences(cases[:8], [tokens_of(output) for output in outputs]) == []


@uses("llada-tp2", "dream-tp2")
def test_two_ranks_open_the_same_blocks(engine: Engine) -> None:
    """A share that rounds otherwise on one of them opens a block a step early."""
    cases = random_cases(engine, 2, 10)
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    assert too_many_forwards(cases, list(map(engine.forwards, outputs))) == []


@uses(*BOTH)
def test_blocks_open_together_in_fewer_forwards(engine: Engine) -> None:
    """That is what they are for."""
    one = case_of(
        engine, 20, 64, 8, "d3llm", entropy_threshold=1.5, add_block_threshold=1.0
    )
    cases = [one, replace(one, add_block_threshold=0.1)]
    slow, fast = (engine.forwards(output) for output in engine.ask(cases))
    assert fast < slow
