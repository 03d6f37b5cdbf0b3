"""Soft tokens (DMax) on offline engines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.adapters import make_adapter
from tests.answers import forwards_of
from tests.dmax_cases import (
    HANGING,
    SoftCase,
    golden_soft_cases,
    random_soft_cases,
    soft_cases,
)
from tests.engines import Engine, Request, tokens_of, uses
from tests.golden_cases import MASK, Case
from tests.multi_block_cases import random_case
from tests.new_cases import new_cases

pytestmark = pytest.mark.timeout(400)
GOLDEN = ("llada8", "dmax8", "dmax32")
ALL = ("sdar4", "sdar16", "llada8", "editing8")


def cases_of(engine: Engine) -> list[SoftCase]:
    spec = engine.spec
    cases = soft_cases(spec.checkpoint, spec.block)
    return cases or random_soft_cases(spec.checkpoint, spec.block, 10)


def wrong(cases: list[SoftCase], outputs: list[Any]) -> list[str]:
    """One line for every other answer, or number of forwards."""
    return [
        f"{case}: got {tokens_of(output)} in {forwards_of(output)} forwards"
        for case, output in zip(cases, outputs, strict=True)
        if tokens_of(output) != case.tokens or forwards_of(output) != case.nfe
    ]


def requests_of(cases: list[SoftCase]) -> list[Request]:
    return [(case, {}) for case in cases]


# Against the authors' code


@uses(*GOLDEN)
def test_a_request_alone_answers_as_the_authors_code(engine: Engine) -> None:
    """A mixture that is off by a little, or a step late, ends in other tokens."""
    cases, outputs = cases_of(engine), []
    for case in cases:
        engine.forget_prefixes()
        outputs += engine.ask([case])
    assert wrong(cases, outputs) == []
    assert [engine.forwards(output) for output in outputs] == [c.nfe for c in cases]


def test_the_answers_left_out_hang_on_rounding() -> None:
    """A wrong decoder could be excused with the arithmetic."""
    for block in (8, 16, 32):
        for case in golden_soft_cases("llada20-dmax-pub0", block):
            assert case.answered_in_float64() == case
            if (block, case.threshold) in HANGING:
                assert case.hangs_on_rounding(draws=20)
            elif case.threshold >= 0.9:
                assert not case.hangs_on_rounding(draws=5)


@uses(*GOLDEN, "sdar16")
def test_soft_and_whole_tokens_share_a_batch(engine: Engine) -> None:
    """Rows of one request could be mixed by the confidences of another, or at all."""
    spec, cases = engine.spec, cases_of(engine)
    others: list[Any] = [
        case.answered()
        for case in new_cases(spec.checkpoint, spec.block, [9, 40], 2 * spec.block)
    ]
    others += [random_case(spec.checkpoint, spec.block, seed) for seed in range(4)]
    mixed: list[Any] = []
    for index in range(max(len(cases), len(others))):
        mixed += [cases[index % len(cases)], others[index % len(others)]]
    for case, output in zip(mixed, engine.ask(mixed), strict=True):
        assert tokens_of(output) == case.tokens, str(case)
        assert not isinstance(case, SoftCase) or forwards_of(output) == case.nfe


@uses(*GOLDEN, "sdar4")
@pytest.mark.parametrize("every", [2, 5])
def test_a_preempted_block_goes_on_as_sure_as_it_was(
    engine: Engine, every: int
) -> None:
    """Confidences live on the worker alone; without them tokens would be whole."""
    cases = cases_of(engine)
    assert wrong(cases, engine.ask_preempting(requests_of(cases), every)) == []
    engine.check_idle()


@uses(*GOLDEN)
def test_prefix_hits_change_nothing(engine: Engine) -> None:
    """KV of a block that was soft would be shared as if it were final."""
    cases = cases_of(engine)
    engine.ask(cases)
    assert wrong(cases, engine.ask(cases)) == []
    longer = [replace(case, prompt=case.prompt + case.tokens[:-1]) for case in cases]
    engine.ask(longer)
    assert wrong(cases, engine.ask(cases)) == []


@uses("sdar16-tight", "llada32-small-steps", "sdar16-few-pages")
def test_tokens_where_room_is_short(engine: Engine) -> None:
    """Prompts come in chunks, whose tokens are never soft."""
    cases = random_soft_cases(engine.spec.checkpoint, engine.spec.block, 5)
    assert wrong(cases, engine.ask(cases)) == []


@uses("llada32-tp2")
def test_two_ranks_mix_the_same_tokens(engine: Engine) -> None:
    """A rank knows a part of the vocabulary alone."""
    cases = random_soft_cases("llada20-pub0", 32, 4)
    assert wrong(cases, engine.ask(cases)) == []


@uses(*ALL)
def test_random_requests_answer_as_the_reference(engine: Engine) -> None:
    """Golden cases have few combinations of lengths and thresholds."""
    cases = random_soft_cases(engine.spec.checkpoint, engine.spec.block, 12)
    assert wrong(cases, engine.ask(cases)) == []


# Beside other things


@uses("llada8")
def test_an_answer_ends_with_a_stop_token_inside_a_block(engine: Engine) -> None:
    """A block leaves whole: tokens behind a stop token must be cut off."""
    for case in cases_of(engine):
        stop = case.tokens[len(case.tokens) // 2]
        [output] = engine.ask([case], stop_token_ids=[stop])
        assert tokens_of(output) == case.tokens[: case.tokens.index(stop) + 1]
        assert output.outputs[0].stop_reason == stop
        [output] = engine.ask([case], max_tokens=5)
        assert tokens_of(output) == case.tokens[:5]


@uses("llada8")
def test_an_end_token_in_the_prompts_tail_ends_nothing(engine: Engine) -> None:
    """The authors' code stops after a block that the prompt's own end token is in, and
    drops all end tokens of prompt and answer."""
    prompt = [9, 1, 10, 11, 12, 13, 14, 15, 1]
    case = SoftCase("llada20-pub0", 8, prompt, 20, 0.3, [], 0).answered()
    [output] = engine.ask([case])
    assert tokens_of(output) == case.tokens
    [output] = engine.ask([case], ignore_eos=False, stop_token_ids=[])
    assert len(tokens_of(output)) == 20 or tokens_of(output)[-1] == 1


@uses("llada8")
def test_a_budget_of_forwards_ends_with_whole_blocks(engine: Engine) -> None:
    """Tokens of a block that is not done may still change."""
    case = cases_of(engine)[0]
    fields = case.fields | {"dllm_max_nfe": case.nfe // 2}
    [output] = engine.ask([case], extra_args=fields)
    tokens = tokens_of(output)
    assert forwards_of(output) == case.nfe // 2
    assert 0 < len(tokens) < case.gen_length and MASK not in tokens
    assert tokens == case.tokens[: len(tokens)]
    assert (len(case.prompt) + len(tokens)) % case.block == 0


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.9, "seed": 5},
    {"temperature": 1.2, "seed": 5, "top_p": 0.9, "top_k": 30, "n": 2},
    {"presence_penalty": 1.0, "repetition_penalty": 1.2},
    {"logprobs": 3},
    {"min_tokens": 15, "ignore_eos": False, "logit_bias": {1: 50.0}},
    {"bad_words": ["w12", "w20 w21"]},
]


@uses("llada8")
def test_what_is_sampled_does_not_depend_on_the_batch(engine: Engine) -> None:
    """Noise, penalties and logprobs of soft tokens, alone and preempted in a batch."""
    spec = engine.spec
    fields = {"dllm_algorithm": "dmax", "dllm_threshold": 0.2}
    case = Case(spec.checkpoint, [5 + k for k in range(21)], 22, 8, "threshold")
    trace = fields | {"dllm_return_trajectory": True}
    requests = [(case, {"extra_args": trace, **more}) for more in SAMPLING]

    def told(output: Any) -> list[Any]:
        return [
            (list(c.token_ids), c.finish_reason, bool(c.logprobs))
            for c in output.outputs
        ]

    alone = [told(output) for one in requests for output in engine.ask_each([one])]
    assert len({str(answer) for answer in alone}) >= 4
    assert [told(output) for output in engine.ask_each(requests)] == alone
    single = [r for r in requests if "n" not in r[1]]
    expected = [a for a, r in zip(alone, requests, strict=True) if "n" not in r[1]]
    assert [told(o) for o in engine.ask_preempting(single, 3)] == expected


@uses("sdar16")
def test_soft_tokens_with_an_adapter(engine: Engine, tmp_path: Path) -> None:
    """Mixtures of one adapter's request beside those of none."""
    adapter = make_adapter(tmp_path / "a", "sdar-pub1", 1, ("q_proj", "v_proj"))
    own = random_soft_cases("sdar-pub1", 16, 12)
    near = {c.prompt[0]: c.answered(adapter.near) for c in own}
    merged = [case.answered(adapter.model) for case in own]
    settled = [c for c in merged if near[c.prompt[0]].tokens == c.tokens]
    assert len(settled) >= 6
    cases = own + settled
    lora = [None] * len(own) + [adapter.request] * len(settled)
    assert wrong(cases, engine.ask_each(requests_of(cases), lora)) == []
