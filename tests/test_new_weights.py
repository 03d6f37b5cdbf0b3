"""Weights that change while an engine runs."""

import pytest
from safetensors import safe_open

from tests.engines import Engine, sampling_params, tokens_of, uses
from tests.golden_cases import (
    GOLDEN,
    Case,
    differences,
    reference_model,
)
from tests.new_cases import new_cases
from tests.watchdog import watched

pytestmark = pytest.mark.timeout(400)
OTHER = "llada20-dmax-pub0"
"""A checkpoint of the same shape as that of the engine `llada8`."""
PROMPTS = [150, 290]
"""Longer than a page."""


def cases_of(engine: Engine) -> list[Case]:
    cases = new_cases(engine.spec.checkpoint, engine.spec.block, PROMPTS, 40)
    return [case.answered() for case in cases]


def load(engine: Engine, checkpoint: str) -> None:
    path = str(GOLDEN / checkpoint)
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": path})


@uses("llada8")
def test_the_same_weights_give_the_same_answers(engine: Engine) -> None:
    """Experts on CPU are packed for their kernel: those that are loaded again and are
    not would be other weights, and nothing says so."""
    cases = cases_of(engine)
    assert differences(cases, engine.answers(cases)) == []
    engine.llm.collective_rpc("reload_weights")
    hits = engine.counter("prefix_cache_hits")
    assert differences(cases, engine.answers(cases)) == []
    assert engine.counter("prefix_cache_hits") == hits, "pages of old weights"


@uses("llada8")
def test_answers_are_those_of_the_new_weights(engine: Engine) -> None:
    """Pages that old weights filled, for requests under way too, would be shared with
    requests that come later."""
    cases = cases_of(engine)
    others = [case.answered(reference_model(OTHER)) for case in cases]
    core = engine.llm.llm_engine
    for number, case in enumerate(cases):
        prompt = {"prompt_token_ids": case.prompt}
        core.add_request(f"old-{number}", prompt, sampling_params(case, {}))
    for _ in range(3):
        core.step()
    assert core.has_unfinished_requests()
    try:
        load(engine, OTHER)
        with watched(core):
            while core.has_unfinished_requests():
                core.step()
        assert differences(others, engine.answers(others)) == []
    finally:
        load(engine, engine.spec.checkpoint)
    assert differences(cases, engine.answers(cases)) == []


@uses("llada8")
def test_weights_that_a_trainer_sends_are_the_new_ones(engine: Engine) -> None:
    """They come in parts, past the loader, and what they need beside it is not done."""
    from tests.weight_files import receive_files

    cases = cases_of(engine)
    others = [case.answered(reference_model(OTHER)) for case in cases]
    assert differences(cases, engine.answers(cases)) == []  # fills pages
    engine.llm.collective_rpc(receive_files)
    try:
        send(engine, OTHER)
        hits = engine.counter("prefix_cache_hits")
        assert differences(others, engine.answers(others)) == []
        assert engine.counter("prefix_cache_hits") == hits, "pages of old weights"
    finally:
        send(engine, engine.spec.checkpoint)
    assert differences(cases, engine.answers(cases)) == []


def send(engine: Engine, checkpoint: str) -> None:
    """As a trainer does, through vLLM's calls for it."""
    llm, path = engine.llm, GOLDEN / checkpoint
    with safe_open(path / "model.safetensors", "pt") as file:
        names = sorted(file.keys())
    llm.init_weight_transfer_engine({"init_info": {"path": str(path)}})
    llm.start_weight_update()
    for part in (names[::2], names[1::2]):
        llm.update_weights({"update_info": {"names": part}})
    llm.finish_weight_update()


@uses("llada8")
def test_tokens_tell_of_which_weights_they_are(engine: Engine) -> None:
    """A trainer would take tokens of old weights for those of the new ones."""
    [case] = cases_of(engine)[:1]
    core = engine.llm.llm_engine
    params = sampling_params(case, {"ignore_eos": True})
    core.add_request("one", {"prompt_token_ids": case.prompt}, params)
    before: list[int] = []
    while len(before) < engine.spec.block:
        before = [t for output in core.step() for t in tokens_of(output)] or before
    try:
        load(engine, OTHER)
        core.set_weight_version("other")
        with watched(core):
            while core.has_unfinished_requests():
                outputs = core.step()
    finally:
        load(engine, engine.spec.checkpoint)
        core.set_weight_version("default")
    [choice] = outputs[0].outputs
    told = [(s.version, s.start, s.end) for s in choice.weight_versions]
    assert told == [
        ("default", 0, len(before)),
        ("other", len(before), case.gen_length),
    ]
    assert list(choice.token_ids)[: len(before)] == before
    assert before == case.tokens[: len(before)]
