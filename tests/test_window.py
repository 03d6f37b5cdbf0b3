"""WeDLM on an engine: what must not change the tokens of a window that slides."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from vllm.sampling_params import StructuredOutputsParams

from tests.engines import Engine, Request, tokens_of, uses
from tests.golden_cases import (
    EOS,
    MASK,
    Case,
    differences,
    golden_cases,
    reference_model,
    too_many_forwards,
)
from tests.reference.wedlm_generate import inputs

pytestmark = pytest.mark.timeout(400)
PAGE = 32
CHECKPOINT = "wedlm-pub0"
LEFTMOST = {"entropy_threshold": None, "pos_penalty_factor": 1000.0}
"""Parameters with which wedlm is `sequential`."""
SEQUENTIAL = {"extra_args": {"dllm_algorithm": "sequential", "dllm_window": 9}}


def new_cases(seed: int, count: int, longest: int = 90) -> list[Case]:
    """Random requests of any window, with the reference's answers."""
    rng = random.Random(seed)
    return [
        Case(
            CHECKPOINT,
            [rng.randrange(2, MASK) for _ in range(rng.randint(1, longest))],
            gen_length=rng.randint(1, 50),
            block_length=None,
            algorithm="wedlm",
            window=rng.choice((1, 2, 5, 16, 16, 23, 32)),
            entropy_threshold=rng.choice((None, 0.4, 0.9, 1.5, 2.5)),
            pos_penalty_factor=rng.choice((0.0, 0.02, 0.1)),
        ).answered()
        for _ in range(count)
    ]


def in_order(case: Case) -> tuple[Case, Request]:
    """The case decoded from left to right: with its answer, and as `sequential`."""
    answered = replace(case, **LEFTMOST).answered()
    return answered, (answered, SEQUENTIAL)


@uses("wedlm", "wedlm-tight")
def test_random_requests_of_both_rules_answer_as_the_reference(engine: Engine) -> None:
    """A window of one length, or a rule, that meets others in a batch, takes a row of
    theirs for its own; few pages and small steps take requests apart."""
    cases = new_cases(1, 24)
    sequential = [in_order(case) for case in cases[::4]]
    asked = [(case, {}) for case in cases] + [request for _, request in sequential]
    cases += [case for case, _ in sequential]
    outputs = engine.ask_each(asked)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    if engine.spec.options.get("max_num_batched_tokens") is None:
        forwards = [engine.forwards(output) for output in outputs]
        assert too_many_forwards(cases, forwards) == []


@uses("wedlm")
def test_preempted_requests_keep_their_windows(engine: Engine) -> None:
    """A window that begins again decodes in another order; a ring that is turned in
    another slot hands out other tokens."""
    cases = golden_cases(CHECKPOINT)
    for every in (3, 7):
        outputs = engine.ask_preempting([(case, {}) for case in cases], every)
        assert differences(cases, [tokens_of(output) for output in outputs]) == []
    engine.check_idle()


@uses("wedlm-tight")
def test_golden_tokens_with_64_tokens_in_a_step(engine: Engine) -> None:
    """Prompts come in chunks that end anywhere, and windows wait for room."""
    cases = golden_cases(CHECKPOINT)
    before = engine.counter("num_preemptions")
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    assert engine.counter("num_preemptions") > before, "pages were enough"
    for case in cases[5::6]:
        engine.forget_prefixes()
        assert engine.answers([case]) == [case.tokens], str(case)


@uses("wedlm-tight")
def test_a_window_ends_where_the_longest_request_does(engine: Engine) -> None:
    """There are no pages behind it, and no positions."""
    from tests.reference.wedlm_generate import generate

    end = engine.spec.options["max_model_len"]
    for case in new_cases(5, 6, longest=40):
        prompt = (case.prompt * end)[: end - 20 - len(case.prompt) % 13]
        room = end - len(prompt)
        long = replace(case, prompt=prompt, gen_length=room + 7, window=32)
        model = reference_model(CHECKPOINT)
        tokens, _ = generate(
            model,
            prompt,
            room,
            MASK,
            32,
            case.entropy_threshold,
            case.pos_penalty_factor,
            stop_id=EOS,
            max_len=end,
        )
        assert engine.answers([long]) == [tokens], str(long)


@uses("wedlm")
def test_what_left_a_window_is_shared_as_of_a_causal_model(engine: Engine) -> None:
    """A page with keys of masks, or of a window's order, answers with other tokens."""
    cases = [case for case in golden_cases(CHECKPOINT) if EOS not in case.tokens]
    engine.forget_prefixes()
    engine.ask(cases)
    following = [
        replace(case, prompt=[*case.prompt, *case.tokens, 7], gen_length=24).answered()
        for case in cases
    ]
    for turn in range(2):
        outputs = engine.ask(following)
        assert differences(following, [tokens_of(o) for o in outputs]) == []
        for case, output in zip(following, outputs, strict=True):
            # The last run of an answer leaves without having been forwarded.
            final = len(case.prompt) - 1 - (0 if turn else case.window)
            assert output.num_cached_tokens >= final // PAGE * PAGE, str(case)


@uses("wedlm")
def test_an_answer_ends_in_the_middle_of_a_run(engine: Engine) -> None:
    """Several tokens leave in a step: those behind a stop token are nobody's."""
    cases = golden_cases(CHECKPOINT)
    requests = [(case, {"stop_token_ids": [case.tokens[9]]}) for case in cases[::3]]
    for (case, _), output in zip(requests, engine.ask_each(requests), strict=True):
        end = case.tokens.index(case.tokens[9]) + 1
        assert tokens_of(output) == case.tokens[:end], str(case)
        assert output.outputs[0].finish_reason == "stop"
    outputs = engine.ask(cases[::5], min_tokens=40, max_tokens=45)
    for output in outputs:
        assert len(tokens_of(output)) == 45 or EOS in tokens_of(output)[40:]


@uses("wedlm")
def test_drawn_tokens_are_the_requests_own(engine: Engine) -> None:
    """Noise that depends on neighbours, or on preemption, is no seed."""
    drawn: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 5, "logprobs": 2}
    requests = [(case, drawn) for case in new_cases(7, 8)]
    together = engine.ask_each(requests)
    answers = [tokens_of(output) for output in together]
    assert answers != [case.tokens for case, _ in requests]
    for output in together:
        assert len(output.outputs[0].logprobs) == len(tokens_of(output))
    assert [tokens_of(engine.ask_each([r])[0]) for r in requests[:4]] == answers[:4]
    again = engine.ask_preempting(requests, 3)
    assert [tokens_of(output) for output in again] == answers


@uses("wedlm")
def test_a_grammar_is_followed_from_left_to_right(engine: Engine) -> None:
    """What a grammar allows behind a mask is not known. One token a step is the best
    of those that it allows; with other rules all are allowed."""
    model, rng = reference_model(CHECKPOINT), random.Random(2)
    for case in rng.sample(golden_cases(CHECKPOINT), 4):
        words = [rng.sample(range(10, 20), rng.randint(1, 6)) for _ in range(9)]
        regex = "".join(
            f"({'|'.join(f'w{token}' for token in some)})" for some in words
        )
        expected: list[int] = []
        for some in [*words, [EOS]]:
            known = [*case.prompt, *expected]
            logits = model(*inputs(known, [None], MASK))[-1]
            expected.append(max(some, key=logits.tolist().__getitem__))
        structured = {"structured_outputs": StructuredOutputsParams(regex=regex)}
        rules = [{"dllm_algorithm": "sequential"}, {}, {"dllm_threshold": 0.05}]
        rules[-1]["dllm_algorithm"] = "threshold"
        outputs = engine.ask_each(
            [(case, {"extra_args": rule, **structured}) for rule in rules]
        )
        assert tokens_of(outputs[0]) == expected
        for output in outputs:
            *answer, end = tokens_of(output)
            assert end == EOS and len(answer) == len(words)
            assert all(t in some for t, some in zip(answer, words, strict=True))


@uses("wedlm")
def test_penalties_and_bad_words_reach_a_window(engine: Engine) -> None:
    """They look at tokens on both sides of a mask, wherever the ring keeps them."""
    for case in golden_cases(CHECKPOINT)[:6]:
        banned = case.tokens[3]
        [output] = engine.ask([case], logit_bias={banned: -100.0}, ignore_eos=True)
        assert banned not in tokens_of(output)
        [output] = engine.ask([case], presence_penalty=2.0, frequency_penalty=2.0)
        answer = tokens_of(output)
        assert len(set(answer)) / len(answer) > len(set(case.tokens)) / len(case.tokens)


@torch.inference_mode()
@uses("wedlm")
def test_a_budget_of_forwards_ends_an_answer(engine: Engine) -> None:
    """What the window holds behind a mask was not handed out."""
    for case in golden_cases(CHECKPOINT)[:4]:
        fields = {**case.fields, "dllm_max_nfe": 9, "dllm_return_trajectory": True}
        [output] = engine.ask([case], extra_args=fields)
        answer = tokens_of(output)
        assert answer == case.tokens[: len(answer)] and len(answer) < case.gen_length
        assert output.outputs[0].finish_reason == "length"
