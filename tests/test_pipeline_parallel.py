"""The stages of a pipeline answer as one process does."""

import pytest

from tests.engines import Engine, tokens_of, uses
from tests.golden_cases import differences, golden_cases

pytestmark = pytest.mark.timeout(400)

PIPELINES = ("sdar16-pp2", "llada32-pp2", "llada-pp2", "dream-pp2")


@uses(*PIPELINES)
def test_golden_tokens_with_two_stages(engine: Engine) -> None:
    """The first stage forwards masks where the last one has decided tokens."""
    cases = golden_cases(engine.spec.checkpoint, engine.spec.block)
    outputs = engine.ask(cases)
    outputs_alone = [engine.ask([case])[0] for case in cases[::5]]
    assert differences(cases, [tokens_of(o) for o in outputs]) == []
    assert differences(cases[::5], [tokens_of(o) for o in outputs_alone]) == []
    assert [
        case
        for case, o in zip(cases, outputs, strict=True)
        if engine.forwards(o) > case.nfe
    ] == []
    engine.check_idle()


@uses(*PIPELINES)
def test_a_request_preempted_while_its_step_is_under_way_goes_on(
    engine: Engine,
) -> None:
    """What a stage hears after it has put a block away is lost, or is another's."""
    cases = golden_cases(engine.spec.checkpoint, engine.spec.block)[::3]
    # Steps come back for as long as two are under way; a request of full attention then
    # needs one that makes its keys again, and one that decides. Preempted before that,
    # time after time, it would never move.
    for every in (5, 6):
        outputs = engine.ask_preempting([(case, {}) for case in cases], every)
        assert differences(cases, [tokens_of(o) for o in outputs]) == []
    engine.check_idle()
    assert engine.counter("num_preemptions") > 0
