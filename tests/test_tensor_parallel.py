"""Two tensor-parallel ranks answer as one does."""

import pytest

from tests.engines import Engine, tokens_of, uses
from tests.golden_cases import differences, golden_cases

pytestmark = pytest.mark.timeout(400)


TWO_RANKS = (
    "sdar16",
    "fastdllm2",
    "nemotron",
    "llada32",
    "moving8",
    "llada",
    "dream",
    "wedlm",
)


@uses(*(f"{name}-tp2" for name in TWO_RANKS))
def test_golden_tokens_with_two_ranks(engine: Engine) -> None:
    """Ranks that choose tokens from their own part of the vocabulary drift apart."""
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
