"""Two tensor-parallel ranks answer as one does."""

import os
import time

import pytest

from tests.engines import Engine, OneAtATime, sampling_params, tokens_of, uses
from tests.golden_cases import differences, golden_cases
from tests.processes import family_of, left_after

pytestmark = pytest.mark.timeout(400)


TWO_RANKS = (
    "sdar16",
    "fastdllm2",
    "nemotron",
    "llada32",
    "moving8",
    "moving32",
    "llada",
    "dream",
    "wedlm",
    *("diffullama", "adablock-llada", "adablock-dream"),
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


@uses("dream-tp2")
def test_the_end_of_a_rank_is_the_end_of_all(
    engine: Engine, running: OneAtATime
) -> None:
    """The other rank would wait for what it would have sent, and so would clients."""
    from vllm.v1.engine.exceptions import EngineDeadError

    core = engine.llm.llm_engine
    case = golden_cases(engine.spec.checkpoint)[0]
    core.add_request(
        "cut", {"prompt_token_ids": case.prompt}, sampling_params(case, {})
    )
    core.step()
    engines = [p for p in family_of(os.getpid()) if p.name().startswith("VLLM")]
    assert len(engines) == 3
    try:
        engines[-1].kill()
        killed = time.monotonic()
        with pytest.raises(EngineDeadError):
            while True:
                core.step()
        assert time.monotonic() - killed < 5
        assert left_after(engines, 30) == []
    finally:
        running.close()
