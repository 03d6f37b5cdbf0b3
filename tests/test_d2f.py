"""D2F on offline engines of full-attention models."""

from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.adapters import make_adapter
from tests.answers import forwards_of, requests_of, wrong
from tests.d2f_cases import D2FCase, answered, d2f_cases, random_d2f_case
from tests.engines import Engine, Request, tokens_of, uses
from tests.golden_cases import MASK, Case, golden_cases
from tests.reference.d2f_generate import D2FWishes
from tests.specs import TIGHT_BUDGET, TIGHT_MODEL_LEN

pytestmark = pytest.mark.timeout(400)
ALL = ("llada", "dream")


def cases_of(engine: Engine) -> list[D2FCase]:
    return d2f_cases(engine.spec.checkpoint)


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


@uses("llada-tight")
def test_random_requests_where_room_is_short(engine: Engine) -> None:
    """A step that was cut, or blocks that are opened again after pages were lost,
    decode other tokens."""
    made = [
        random_d2f_case("llada-pub0", seed, max_len=TIGHT_MODEL_LEN)
        for seed in range(60, 90)
    ]
    cases = [
        case
        for case in made
        if len(case.prompt) + case.gen_length + case.wishes.block <= TIGHT_BUDGET
    ]
    assert len(cases) > 20
    before = engine.counter("num_preemptions")
    assert wrong(cases, engine.ask_each(requests_of(cases))) == []
    assert engine.counter("num_preemptions") > before
    engine.check_idle()


@uses("llada")
def test_no_block_goes_past_the_longest_request(engine: Engine) -> None:
    """Positions past it have no row of the rotary tables, and no client gets them."""
    how = D2FWishes(block=32, threshold=0.2, add_block=0.1, semi_complete=0.9)
    prompt = [5 + k % 90 for k in range(1024 - 40)]
    case = answered("llada-pub0", prompt, 40, how, max_len=1024)
    assert wrong([case], engine.ask_each([(case, {})])) == []


@uses("llada-tp2", "dream-tp2")
def test_two_ranks_open_the_same_blocks(engine: Engine) -> None:
    """Ranks that disagree on what is open forward other tokens, and hang or drift."""
    cases = cases_of(engine)
    assert wrong(cases, engine.ask_each(requests_of(cases))) == []


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.9, "seed": 5},
    {"temperature": 1.2, "seed": 6, "top_p": 0.9, "top_k": 30},
    {"temperature": 1.0, "seed": 7, "n": 2},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"logprobs": 3},
    {"min_tokens": 15, "ignore_eos": False, "logit_bias": {1: 50.0}},
    {"bad_words": ["w12", "w20 w21"]},
]


@uses(*ALL)
def test_sampling_is_each_requests_own(engine: Engine) -> None:
    """Noise, penalties and logprobs of a request would come from its company, or from
    when it was preempted."""
    cases = cases_of(engine)[: len(SAMPLING)]
    requests: list[Request] = [
        (case, sampling | {"extra_args": case.fields | {"dllm_return_trajectory": 1}})
        for case, sampling in zip(cases, SAMPLING, strict=False)
    ]

    def told(outputs: list[Any]) -> list[Any]:
        return [
            (list(choice.token_ids), rounded(choice.logprobs))
            for output in outputs
            for choice in output.outputs
        ]

    alone = [answer for r in requests for answer in told(engine.ask_each([r]))]
    others: list[Request] = [(c, {}) for c in golden_cases(engine.spec.checkpoint)[::6]]
    among = engine.ask_each(requests + others)
    assert told(among[: len(requests)]) == alone
    assert all(MASK not in tokens for tokens, _ in alone)
    single = [r for r in requests if r[1].get("n", 1) == 1]
    preempted = engine.ask_preempting(single, 2)
    kept = [told(among[i : i + 1])[0] for i, r in enumerate(requests) if r in single]
    assert told(preempted) == kept


def rounded(logprobs: Any) -> Any:
    """Without what the order of sums changes."""
    return logprobs and [
        {token: round(found.logprob, 3) for token, found in step.items()}
        for step in logprobs
    ]


@uses(*ALL)
def test_an_answer_ends_inside_a_later_block(engine: Engine) -> None:
    """Tokens behind a stop token are decoded early, and must not be handed out."""
    for case in cases_of(engine):
        stop = case.tokens[len(case.tokens) // 2]
        cut = case.tokens[: case.tokens.index(stop) + 1]
        [output] = engine.ask_each([(case, {"stop_token_ids": [stop]})])
        assert tokens_of(output) == cut
        assert output.outputs[0].stop_reason == stop
        [output] = engine.ask_each([(case, {"max_tokens": 5})])
        assert tokens_of(output) == case.tokens[:5]
    engine.check_idle()


@uses(*ALL)
def test_a_budget_of_forwards_ends_an_answer(engine: Engine) -> None:
    """Blocks behind the first mask are not part of it."""
    case = max(cases_of(engine), key=lambda case: case.nfe or 0)
    assert case.nfe is not None
    for budget in (1, 3, case.nfe // 2):
        fields = case.fields | {"dllm_max_nfe": budget}
        [output] = engine.ask_each([(case, {"extra_args": fields})])
        assert forwards_of(output) == budget
        tokens = tokens_of(output)
        assert tokens == case.tokens[: len(tokens)]
        assert output.outputs[0].finish_reason == "length"


@uses(*ALL)
def test_structured_output_beside_it(engine: Engine) -> None:
    """What a grammar allows is said of a row, and rows are blocks here."""
    cases = cases_of(engine)
    grammar = StructuredOutputsParams(regex="(w1[0-9]){9}")
    case = Case(engine.spec.checkpoint, [7] * 9, 24, 8, "sequential")
    own = {"extra_args": {"dllm_block_length": 8}, "ignore_eos": False}
    structured: Request = (case, own | {"structured_outputs": grammar})
    alone = [tokens_of(output) for output in engine.ask_each([structured])]
    mixed = [*requests_of(cases[:5]), structured, *requests_of(cases[5:])]
    outputs = engine.ask_each(mixed)
    assert tokens_of(outputs.pop(5)) == alone[0]
    assert wrong(cases, outputs) == []


@uses(*ALL)
def test_with_an_adapter(engine: Engine, tmp_path: Path) -> None:
    """D2F is released as one; rows of a prompt, of a block and of the position before
    it are all of their request's."""
    base = engine.spec.checkpoint
    adapter = make_adapter(tmp_path / "a", base, 1, ("q_proj", "v_proj", "up_proj"))
    models = [adapter.model if seed % 2 else None for seed in range(20)]
    cases = [random_d2f_case(base, s, m) for s, m in enumerate(models)]
    # Without the few that hang on rounding: a merged weight is another sum.
    near = [
        random_d2f_case(base, s, adapter.near).tokens if m else cases[s].tokens
        for s, m in enumerate(models)
    ]
    kept = [s for s, case in enumerate(cases) if case.tokens == near[s]]
    assert len(kept) > 16
    lora = [adapter.request if models[s] else None for s in kept]
    outputs = engine.ask_each(requests_of([cases[s] for s in kept]), lora)
    assert wrong([cases[s] for s in kept], outputs) == []
