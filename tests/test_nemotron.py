"""Nemotron-Labs-Diffusion on a real engine: what is its own."""

import random
from dataclasses import replace

import pytest

from tests.engines import Engine, tokens_of, uses
from tests.golden_cases import (
    MASK,
    Case,
    differences,
    golden_cases,
    too_many_forwards,
)

pytestmark = pytest.mark.timeout(400)
CHECKPOINT = "nemotron-pub0"


def random_cases(prompt_lengths: list[int], gen_length: int) -> list[Case]:
    """Of every rule, with blocks of any length, answered by the reference."""
    rng = random.Random(f"{prompt_lengths} {gen_length}")
    rules = [("threshold", 0.4, None), ("quota", None, None), ("quota", None, 3)]
    return [
        Case(
            CHECKPOINT,
            [rng.randrange(2, MASK) for _ in range(length)],
            gen_length,
            block,
            algorithm,
            steps,
            threshold,
        ).answered()
        for length, block in zip(prompt_lengths, (1, 7, 32, 40), strict=True)
        for algorithm, threshold, steps in rules
        if steps is None or steps <= block
    ]


@uses("nemotron")
def test_blocks_of_any_length_answer_as_the_reference(engine: Engine) -> None:
    """A grid that is not anchored at the prompt's end, or masks of another kind."""
    cases = random_cases([1, 31, 64, 65], 50)
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    forwards = [engine.forwards(output) for output in outputs]
    assert too_many_forwards(cases, forwards) == []


@uses("nemotron")
@pytest.mark.parametrize("every", [2, 3, 5])
def test_golden_tokens_when_all_are_preempted_again_and_again(
    engine: Engine, every: int
) -> None:
    """What a step on the block left is not the KV of the causal model."""
    cases = golden_cases(CHECKPOINT)
    outputs = engine.ask_preempting([(case, {}) for case in cases], every)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []


@uses("nemotron-tight")
def test_golden_tokens_with_small_steps(engine: Engine) -> None:
    """Prompts come in parts, beside blocks that are denoised, and these wait."""
    cases = golden_cases(CHECKPOINT)
    assert differences(cases, engine.answers(cases)) == []
    for case in cases[::5]:
        assert engine.answers([case]) == [case.tokens], str(case)
    engine.check_idle()


@uses("nemotron-tight")
def test_a_block_that_no_step_holds_is_refused(engine: Engine) -> None:
    """It would wait for ever."""
    from vllm.exceptions import VLLMValidationError

    case = replace(golden_cases(CHECKPOINT)[0], block_length=49)
    with pytest.raises(VLLMValidationError, match=r"dllm_block_length=49 .* 1 to 48"):
        engine.ask([case])


PAGE = 32


@uses("nemotron")
def test_pages_of_prompts_are_shared(engine: Engine) -> None:
    """A hit that is too long leaves no row to decide the first token; one that is not
    that of the causal model answers with other tokens."""
    cases = golden_cases(CHECKPOINT)
    engine.forget_prefixes()
    engine.ask(cases)
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    assert [output.num_cached_tokens for output in outputs] == [
        (len(case.prompt) - 1) // PAGE * PAGE for case in cases
    ]


@uses("nemotron")
def test_a_page_of_a_block_that_was_never_made_final_is_not_shared(
    engine: Engine,
) -> None:
    """Its last steps left KV that has seen what follows it, and masks."""
    engine.forget_prefixes()
    # A page ends inside the last block of each, all of whose tokens before are known.
    begun = [
        replace(case, gen_length=PAGE - 6)
        for case in random_cases([20, 20, 20, 20], PAGE)
        if case.block_length in (32, 40)
    ]
    answers = engine.answers(begun)
    following = [
        replace(case, prompt=[*case.prompt, *tokens, 9], gen_length=20).answered()
        for case, tokens in zip(begun, answers, strict=True)
    ]
    outputs = engine.ask(following)
    assert differences(following, [tokens_of(output) for output in outputs]) == []
    assert {output.num_cached_tokens for output in outputs} == {0}


@uses("nemotron-few-pages")
def test_golden_tokens_with_too_few_pages(engine: Engine) -> None:
    """The page of another request may hold a part of a block whose own was lost."""
    cases = golden_cases(CHECKPOINT) * 2
    before = engine.counter("num_preemptions")
    outputs = engine.ask(cases)
    assert engine.counter("num_preemptions") > before
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
