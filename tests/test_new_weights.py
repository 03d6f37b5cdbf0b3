"""Weights that change while an engine runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.checkpoints import derived
from tests.engines import Engine, sampling_params, tokens_of, uses
from tests.golden_cases import (
    GOLDEN,
    Case,
    differences,
    model_class,
)
from tests.new_cases import new_cases
from tests.watchdog import watched

pytestmark = pytest.mark.timeout(400)
PROMPTS = [150, 290]
"""Longer than a page."""
NOISE = 0.3
"""Of other weights, as a share of their size."""


def cases_of(engine: Engine) -> list[Case]:
    cases = new_cases(engine.spec.checkpoint, engine.spec.block, PROMPTS, 40)
    return [case.answered() for case in cases]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like that of the engine `llada8`, every tensor of it another one:
    keys of the one are of no use to the other."""
    base = "llada20-pub0"
    generator = torch.Generator().manual_seed(0)
    weights = load_file(GOLDEN / base / "model.safetensors")
    for weight in weights.values():
        noise = torch.randn(weight.shape, generator=generator)
        weight += NOISE * weight.abs().mean() * noise
    return derived(tmp_path_factory.mktemp("other") / "model", base, weights)


def answered_by(checkpoint: Path, cases: list[Case]) -> list[Case]:
    model = model_class("llada20").from_pretrained(checkpoint)
    return [case.answered(model) for case in cases]


def load(engine: Engine, checkpoint: Path) -> None:
    path = str(checkpoint)
    engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": path})


@pytest.fixture
def restored(engine: Engine) -> Iterator[None]:
    """Whatever the test loads, the next one finds the engine's own weights."""
    yield
    load(engine, GOLDEN / engine.spec.checkpoint)


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
@pytest.mark.usefixtures("restored")
def test_answers_are_those_of_the_new_weights(engine: Engine, other: Path) -> None:
    """Pages that old weights filled, for requests under way too, would be shared with
    requests that come later."""
    cases = cases_of(engine)
    others = answered_by(other, cases)
    core = engine.llm.llm_engine
    for number, case in enumerate(cases):
        prompt = {"prompt_token_ids": case.prompt}
        core.add_request(f"old-{number}", prompt, sampling_params(case, {}))
    for _ in range(3):
        core.step()
    assert core.has_unfinished_requests()
    load(engine, other)
    with watched(core):
        while core.has_unfinished_requests():
            core.step()
    assert differences(others, engine.answers(others)) == []
    load(engine, GOLDEN / engine.spec.checkpoint)
    assert differences(cases, engine.answers(cases)) == []


@uses("llada8")
@pytest.mark.usefixtures("restored")
def test_weights_that_a_trainer_sends_are_the_new_ones(
    engine: Engine, other: Path
) -> None:
    """They come in parts, past the loader, and what they need beside it is not done."""
    from tests.weight_files import receive_files

    cases = cases_of(engine)
    others = answered_by(other, cases)
    assert differences(cases, engine.answers(cases)) == []  # fills pages
    engine.llm.collective_rpc(receive_files)
    send(engine, other)
    assert differences(others, engine.answers(others)) == []
    send(engine, GOLDEN / engine.spec.checkpoint)
    assert differences(cases, engine.answers(cases)) == []


def send(engine: Engine, checkpoint: Path) -> None:
    """As a trainer does, through vLLM's calls for it."""
    llm = engine.llm
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        names = sorted(file.keys())
    llm.init_weight_transfer_engine({"init_info": {"path": str(checkpoint)}})
    llm.start_weight_update()
    for part in (names[::2], names[1::2]):
        llm.update_weights({"update_info": {"names": part}})
    llm.finish_weight_update()


@uses("llada8")
@pytest.mark.usefixtures("restored")
def test_tokens_tell_of_which_weights_they_are(engine: Engine, other: Path) -> None:
    """A trainer would take tokens of old weights for those of the new ones."""
    [case] = cases_of(engine)[:1]
    core = engine.llm.llm_engine
    params = sampling_params(case, {"ignore_eos": True})
    core.add_request("one", {"prompt_token_ids": case.prompt}, params)
    before: list[int] = []
    while len(before) < engine.spec.block:
        before = [t for output in core.step() for t in tokens_of(output)] or before
    load(engine, other)
    core.set_weight_version("other")
    try:
        with watched(core):
            while core.has_unfinished_requests():
                outputs = core.step()
    finally:
        core.set_weight_version("default")
    [choice] = outputs[0].outputs
    told = [(s.version, s.start, s.end) for s in choice.weight_versions]
    assert told == [
        ("default", 0, len(before)),
        ("other", len(before), case.gen_length),
    ]
    assert list(choice.token_ids)[: len(before)] == before
    assert before == case.tokens[: len(before)]
