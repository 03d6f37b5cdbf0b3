"""Several blocks in flight (multi_bd) on offline engines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.adapters import make_adapter
from tests.answers import forwards_of, requests_of, wrong
from tests.engines import Engine, Request, tokens_of, uses
from tests.golden_cases import MASK, Case, golden_cases
from tests.multi_block_cases import BufferCase, multi_block_cases, random_case
from tests.new_cases import new_cases

pytestmark = pytest.mark.timeout(400)
ALL = ("sdar4", "sdar16", "llada8", "llada32", "editing8", "editing32")
TRACED = {"dllm_return_trajectory": True}


def cases_of(engine: Engine) -> list[BufferCase]:
    cases = multi_block_cases(engine.spec.checkpoint, engine.spec.block)
    assert cases
    return cases


def single_block_requests(engine: Engine) -> list[Request]:
    spec = engine.spec
    return [
        (case.answered(), {})
        for case in new_cases(spec.checkpoint, spec.block, [9], 20)
    ]


# Golden cases


@uses(*ALL)
def test_a_request_alone_answers_as_diffulex(engine: Engine) -> None:
    """A block that opens a step early or late is decoded to other tokens."""
    cases, outputs = cases_of(engine), []
    for case in cases:
        engine.forget_prefixes()
        outputs += engine.ask_each(requests_of([case]))
    assert wrong(cases, outputs) == []


@uses(*ALL)
def test_several_blocks_and_one_block_share_a_batch(engine: Engine) -> None:
    """Rows of one request could become another one's blocks."""
    cases = cases_of(engine)
    others: list[Request] = [
        (case, {})
        for case in golden_cases(engine.spec.checkpoint, engine.spec.block)[:12]
    ]
    mixed: list[Request] = []
    for index, request in enumerate(requests_of(cases)):
        mixed += [request, others[index % len(others)]]
    outputs = engine.ask_each(mixed)
    assert wrong(cases, outputs[::2]) == []
    for (case, _), output in zip(mixed[1::2], outputs[1::2], strict=True):
        assert isinstance(case, Case)
        assert tokens_of(output) == case.tokens, str(case)


@uses(*ALL)
@pytest.mark.parametrize("every", [2, 5])
def test_a_preempted_buffer_goes_on_where_it_was(engine: Engine, every: int) -> None:
    """Which blocks are open is part of the answer, and lives on the worker alone."""
    cases = cases_of(engine)
    outputs = engine.ask_preempting(requests_of(cases), every)
    assert wrong(cases, outputs) == []
    engine.check_idle()


@uses(*ALL)
def test_prefix_hits_change_nothing(engine: Engine) -> None:
    """Pages of blocks that were not final would be shared."""
    cases = cases_of(engine)
    engine.ask_each(requests_of(cases))
    assert wrong(cases, engine.ask_each(requests_of(cases))) == []
    # Pages of the same answer, longer than the buffer that is in them.
    again = [replace(c, prompt=c.prompt + c.tokens[:-1]) for c in cases]
    engine.ask_each(requests_of(again))
    assert wrong(cases, engine.ask_each(requests_of(cases))) == []


@uses("sdar16-tight", "llada32-small-steps", "sdar16-few-pages")
def test_golden_tokens_where_room_is_short(engine: Engine) -> None:
    """Prompts come in chunks, and a buffer that does not fit waits whole."""
    limit = engine.spec.options.get("max_num_batched_tokens", 10_000)
    cases = [
        case
        for case in cases_of(engine)
        if case.wishes.size * case.wishes.block <= limit
    ]
    assert any(case.wishes.size > 1 for case in cases)
    assert wrong(cases, engine.ask_each(requests_of(cases))) == []


@uses("sdar16-tp2")
def test_two_ranks_open_the_same_blocks(engine: Engine) -> None:
    """Ranks that disagree on what is open forward other tokens, and hang or drift."""
    cases = cases_of(engine)
    assert wrong(cases, engine.ask_each(requests_of(cases))) == []


# Against the reference


@uses(*ALL)
def test_random_requests_answer_as_the_reference(engine: Engine) -> None:
    """Golden cases have few combinations of lengths and thresholds."""
    spec = engine.spec
    cases = [random_case(spec.checkpoint, spec.block, seed) for seed in range(40)]
    assert wrong(cases, engine.ask_each(requests_of(cases))) == []


@uses("sdar4", "llada8")
def test_each_token_tells_of_the_forward_that_decided_it(engine: Engine) -> None:
    """A token behind the front leaves steps later, with what was kept of it."""
    spec = engine.spec
    cases = [random_case(spec.checkpoint, spec.block, seed) for seed in range(40, 60)]
    requests: list[Request] = [
        (case, {"logprobs": 0, "extra_args": case.fields | TRACED}) for case in cases
    ]
    for case, output in zip(cases, engine.ask_each(requests), strict=True):
        assert tokens_of(output) == case.tokens
        steps, values = zip(*case.trace, strict=True)
        assert output.kv_transfer_params["dllm_trajectory"] == list(steps), str(case)
        told = output.outputs[0].logprobs
        found = [step[t].logprob for step, t in zip(told, case.tokens, strict=True)]
        assert found == pytest.approx(values, abs=1e-3)


# One more block behind changes nothing in front


SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 1.2, "seed": 5, "top_p": 0.9, "top_k": 30},
    {"temperature": 1.0, "seed": 5, "n": 2},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"logprobs": 3},
    {"min_tokens": 15, "ignore_eos": False, "logit_bias": {1: 50.0}},
    {"bad_words": ["w12", "w20 w21"]},
]


@uses("sdar4", "llada8")
def test_blocks_that_open_behind_whole_ones_answer_as_one_block(
    engine: Engine,
) -> None:
    """Noise, penalties, limits and logprobs of a position do not depend on how many
    blocks are in flight."""
    block = engine.spec.block
    prompt = [5 + (7 * k) % 90 for k in range(3 * block + 1)]
    alone = {"dllm_threshold": 0.4, "dllm_algorithm": "threshold"}
    alone |= {"dllm_return_trajectory": True}
    case = Case(engine.spec.checkpoint, prompt, 5 * block + 2, block, "threshold")

    def answers(fields: dict[str, Any]) -> list[Any]:
        requests = [(case, {"extra_args": fields, **s}) for s in SAMPLING]
        return [
            (
                list(choice.token_ids),
                rounded(choice.logprobs),
                choice.finish_reason,
            )
            for output in engine.ask_each(requests)
            for choice in output.outputs
        ]

    expected = answers(alone)
    for size in (2, 4):
        buffer = {"dllm_buffer_size": size, "dllm_add_block_threshold": 1.0}
        assert answers(alone | buffer) == expected


def rounded(logprobs: Any) -> Any:
    """Without what the order of sums changes."""
    return logprobs and [
        {token: round(found.logprob, 3) for token, found in step.items()}
        for step in logprobs
    ]


# Ends


@uses("sdar4", "llada8", "editing8")
def test_an_answer_ends_inside_a_later_block(engine: Engine) -> None:
    """Tokens behind a stop token are decoded early, and must not be handed out."""
    for case in cases_of(engine):
        if case.stop_token_ids or case.wishes.size == 1:
            continue
        stop = case.tokens[len(case.tokens) // 2]
        cut = case.tokens[: case.tokens.index(stop) + 1]
        [output] = engine.ask_each([(case, {"stop_token_ids": [stop]})])
        assert tokens_of(output) == cut
        assert output.outputs[0].stop_reason == stop
        [output] = engine.ask_each([(case, {"max_tokens": 5})])
        assert tokens_of(output) == case.tokens[:5]
    engine.check_idle()


@uses("sdar4", "llada8")
def test_a_budget_of_forwards_ends_several_blocks(engine: Engine) -> None:
    """Blocks behind the first mask are not part of the answer."""
    case = max(cases_of(engine), key=lambda case: case.nfe * (case.wishes.size > 1))
    for budget in (1, 3, case.nfe // 2):
        fields = case.fields | {"dllm_max_nfe": budget}
        [output] = engine.ask_each([(case, {"extra_args": fields})])
        assert forwards_of(output) == budget
        tokens = tokens_of(output)
        assert tokens == case.tokens[: len(tokens)]
        assert MASK not in tokens
        assert output.outputs[0].finish_reason == "length"


@uses("sdar4")
def test_the_other_requests_of_this_engine_are_as_before(engine: Engine) -> None:
    """Tables grow with the most blocks in flight, and one block uses a part of them."""
    single = single_block_requests(engine)
    engine.ask_each(requests_of(cases_of(engine)))
    for (case, _), output in zip(single, engine.ask_each(single), strict=True):
        assert isinstance(case, Case)
        assert tokens_of(output) == case.tokens


# Beside other things


@uses("sdar4")
def test_structured_output_beside_several_blocks(engine: Engine) -> None:
    """What a grammar allows is said of a row, and rows are blocks here."""
    cases = cases_of(engine)
    grammar = StructuredOutputsParams(regex="(w1[0-9]){9}")
    case = Case("sdar-pub0", [7] * 9, 24, 4, "sequential")
    structured: list[Request] = [
        (case, {"extra_args": None, "ignore_eos": False, "structured_outputs": grammar})
    ]
    alone = [tokens_of(output) for output in engine.ask_each(structured)]
    assert len(alone[0]) == 10
    mixed = requests_of(cases[:5]) + structured + requests_of(cases[5:])
    outputs = engine.ask_each(mixed)
    assert tokens_of(outputs.pop(5)) == alone[0]
    assert wrong(cases, outputs) == []


@uses("sdar16")
def test_several_blocks_with_an_adapter(engine: Engine, tmp_path: Path) -> None:
    """Rows of a buffer are rows of its request's adapter."""
    adapter = make_adapter(tmp_path / "a", "sdar-pub1", 1, ("q_proj", "v_proj"))
    models = [adapter.model if seed % 2 else None for seed in range(20)]
    cases = [random_case("sdar-pub1", 16, s, m) for s, m in enumerate(models)]
    lora = [model and adapter.request for model in models]
    outputs = engine.ask_each(requests_of(cases), lora)
    assert wrong(cases, outputs) == []
