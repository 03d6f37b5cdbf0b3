"""Every golden case on an offline engine: tokens and number of forwards."""

import pytest

from tests.engines import Engine, tokens_of, uses
from tests.golden_cases import (
    EOS,
    Case,
    differences,
    golden_cases,
    too_many_forwards,
)
from tests.new_cases import new_cases
from tests.specs import AHEAD_ON_DEMAND

pytestmark = pytest.mark.timeout(400)
FULL_ATTENTION = ("llada", "dream")
ALL = (
    *("sdar4", "sdar16", "fastdllm2", "llada8", "llada32"),
    *("nemotron", "editing8", "editing32", "moving8", "moving32"),
    *(*FULL_ATTENTION, "diffullama", "adablock-llada", "adablock-dream", "wedlm"),
)


def cases_of(engine: Engine) -> list[Case]:
    cases = golden_cases(engine.spec.checkpoint, engine.spec.block)
    assert len(cases) >= 10
    return cases


@uses(*ALL)
def test_a_request_alone_answers_as_the_authors_code(engine: Engine) -> None:
    """A wrong rule, mask or position gives fluent but other tokens, or more steps."""
    cases, outputs = cases_of(engine), []
    for case in cases:
        engine.forget_prefixes()
        outputs += engine.ask([case])
    assert differences(cases, [tokens_of(o) for o in outputs]) == []
    forwards = [engine.forwards(output) for output in outputs]
    assert too_many_forwards(cases, forwards) == []


@uses(*ALL, *(f"{name}-ahead" for name in AHEAD_ON_DEMAND))
def test_requests_in_one_batch_answer_as_the_authors_code(engine: Engine) -> None:
    """Rows of one request could leak into another one's block, mask or quota."""
    cases = cases_of(engine)
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(o) for o in outputs]) == []
    forwards = [engine.forwards(output) for output in outputs]
    assert too_many_forwards(cases, forwards) == []


@uses(*ALL)
def test_metrics_count_every_denoising_step(engine: Engine) -> None:
    """Steps that emit nothing would be missing from vLLM's own counter."""
    cases = cases_of(engine)
    before = engine.counter("diffusion_num_denoising_steps")
    outputs = engine.ask(cases)
    counted = engine.counter("diffusion_num_denoising_steps") - before
    # The prompts fit the first step, so every forward has a canvas.
    assert counted == sum(engine.forwards(output) for output in outputs)


@uses("sdar4", *FULL_ATTENTION)
def test_an_answer_ends_with_its_first_end_token(engine: Engine) -> None:
    """Tokens decoded past an end token in the same block would be returned too, and
    blocks after it would be decoded for nobody."""
    cases = [case for case in cases_of(engine) if EOS in case.tokens]
    outputs = engine.ask(cases, ignore_eos=False)
    for case, output in zip(cases, outputs, strict=True):
        assert tokens_of(output) == case.tokens[: case.tokens.index(EOS) + 1], str(case)
        assert output.outputs[0].finish_reason == "stop"
    assert sum(map(engine.forwards, outputs)) < sum(case.nfe for case in cases)


@uses("sdar16", "fastdllm2", "nemotron", *FULL_ATTENTION)
def test_an_answer_ends_with_a_stop_token_inside_a_block(engine: Engine) -> None:
    """A step emits several tokens: those after a stop token must be cut off."""
    for case in cases_of(engine)[::2]:
        stop = case.tokens[9]
        [output] = engine.ask([case], stop_token_ids=[stop])
        assert tokens_of(output) == case.tokens[: case.tokens.index(stop) + 1]
        assert output.outputs[0].stop_reason == stop


@uses("editing8", "editing32", "moving8")
def test_editing_mixes_with_rules_that_do_not_edit(engine: Engine) -> None:
    """One rule's blocks wait until they are done, the other's leave token by token."""
    editing = cases_of(engine)
    name, block = engine.spec.checkpoint, engine.spec.block
    others = [case.answered() for case in new_cases(name, block, [3, 40, 70], 40)]
    mixed = [case for pair in zip(editing, others, strict=False) for case in pair]
    assert len(mixed) >= 12
    outputs = engine.ask(mixed)
    assert differences(mixed, [tokens_of(output) for output in outputs]) == []
