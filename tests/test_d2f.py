"""D2F on offline engines of full-attention models."""

from typing import Any

import pytest

from tests.d2f_cases import D2FCase, d2f_cases, random_d2f_case
from tests.engines import Engine, Request, tokens_of, uses
from tests.golden_cases import golden_cases

pytestmark = pytest.mark.timeout(400)
ALL = ("llada", "dream")


def cases_of(engine: Engine) -> list[D2FCase]:
    return d2f_cases(engine.spec.checkpoint)


def requests_of(cases: list[D2FCase]) -> list[Request]:
    return [(case, case.sampling) for case in cases]


def forwards_of(output: Any) -> int:
    """Those that decided something, as the client is told."""
    return output.outputs[0].spec_decode_metrics.num_draft_tokens


def wrong(cases: list[D2FCase], outputs: list[Any]) -> list[str]:
    """One line for every other answer, or number of forwards."""
    return [
        f"{case}: got {tokens_of(output)} in {forwards_of(output)} forwards"
        for case, output in zip(cases, outputs, strict=True)
        if tokens_of(output) != case.tokens or not case.may_take(forwards_of(output))
    ]


@uses(*ALL)
def test_a_request_alone_answers_as_the_authors(engine: Engine) -> None:
    """A block that opens a step early or late is decoded to other tokens."""
    cases = cases_of(engine)
    outputs = [engine.ask_each([request])[0] for request in requests_of(cases)]
    assert wrong(cases, outputs) == []


@uses(*ALL)
def test_every_regime_shares_a_batch(engine: Engine) -> None:
    """Rows of one request could become another one's blocks, or see its keys."""
    cases = cases_of(engine)
    others = golden_cases(engine.spec.checkpoint)
    others = sorted(others, key=lambda case: (case.cfg_scale == 0, not case.suffix))
    others = [others[index % len(others)] for index in range(len(cases))]
    pairs = zip(requests_of(cases), others, strict=True)
    mixed: list[Request] = [one for d2f, other in pairs for one in (d2f, (other, {}))]
    outputs = engine.ask_each(mixed)
    assert wrong(cases, outputs[::2]) == []
    for case, output in zip(others, outputs[1::2], strict=True):
        assert tokens_of(output) == case.tokens, str(case)
    engine.check_idle()


@uses(*ALL)
@pytest.mark.parametrize("every", [1, 3])
def test_a_preempted_answer_goes_on_where_it_was(engine: Engine, every: int) -> None:
    """Which blocks are open is part of the answer, and lives on the worker alone."""
    cases = cases_of(engine)
    outputs = engine.ask_preempting(requests_of(cases), every)
    assert wrong(cases, outputs) == []
    engine.check_idle()


@uses(*ALL)
def test_random_requests_answer_as_the_reference(engine: Engine) -> None:
    """Golden cases have few combinations of lengths and thresholds."""
    cases = [random_d2f_case(engine.spec.checkpoint, seed) for seed in range(40)]
    assert wrong(cases, engine.ask_each(requests_of(cases))) == []
