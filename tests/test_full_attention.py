"""Full attention on a real engine: what its requests choose, against the references.

Every batch mixes caches. The engine takes as many forwards as the reference or fewer.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engines import Engine, tokens_of, uses
from tests.full_attention import (
    BOTH,
    CACHES,
    answers_of,
    case_of,
    dream_case,
    failures,
    guided_cases,
)
from tests.golden_cases import EOS, MASK, differences, golden_cases, reference_model
from tests.reference import llada_generate
from tests.reference.kv_cache import Cache
from tests.reference.llada import LLaDA
from tests.specs import TIGHT_BUDGET

pytestmark = pytest.mark.timeout(400)
PAGE = 32
MODEL_LEN = 1024


# Guidance


@uses(*BOTH)
def test_guidance_answers_as_the_reference(engine: Engine) -> None:
    """The branch without a prompt has pages, positions and rows of its own: a mix-up
    of any of them with the other branch, or with a neighbour, gives other tokens."""
    cases = guided_cases(engine)
    assert {(len(c.prompt) + c.gen_length) % PAGE == 0 for c in cases} == {True, False}
    assert failures(engine, cases) == []


@uses(*BOTH)
def test_guidance_leads_away_from_the_unguided_answer(engine: Engine) -> None:
    """The tests above would pass with a scale that nobody reads."""
    cases = guided_cases(engine)
    free = [replace(case, cfg_scale=0.0) for case in cases]
    pairs = zip(cases, engine.answers(cases), engine.answers(free), strict=True)
    changed = {(c.cache, c.cfg_scale) for c, guided, plain in pairs if guided != plain}
    assert changed == {(cache, scale) for cache in CACHES for scale in (0.5, 1.5)}


# Ends of text


@uses("llada")
@pytest.mark.parametrize("field", ["logits_eos_inf", "confidence_eos_eot_inf"])
def test_end_tokens_are_forbidden_or_last(engine: Engine, field: str) -> None:
    """One is a ban, the other only an order; both must leave neighbours alone."""
    golden = [c for c in golden_cases(engine.spec.checkpoint) if EOS in c.tokens]
    changed = [replace(case, **{field: True}) for case in golden]
    changed += [replace(case, cfg_scale=0.5) for case in changed[::3]]
    answered = [case.answered() for case in changed]
    assert sum(a.tokens != g.tokens for a, g in zip(answered, golden, strict=False)) > 3
    mixed = [*answered, *golden]
    assert differences(mixed, engine.answers(mixed)) == []
    with_end = [case for case in answered if EOS in case.tokens]
    assert bool(with_end) == (field == "confidence_eos_eot_inf")


@uses("dream")
def test_a_forbidden_end_token_is_never_decoded(engine: Engine) -> None:
    """Dream's authors have no such field, its requests may have it."""
    golden = [c for c in golden_cases(engine.spec.checkpoint) if EOS in c.tokens]
    eager = {"logit_bias": {EOS: 100.0}}
    assert [set(answer) for answer in engine.answers(golden, **eager)] == [
        {EOS} for _ in golden
    ]
    banned = [replace(case, logits_eos_inf=True) for case in golden]
    for answer in engine.answers(banned, **eager) + engine.answers(banned):
        assert EOS not in answer


# Rules with a reference


@uses("llada")
def test_rules_of_fast_dllm_answer_as_the_reference(engine: Engine) -> None:
    """Cached steps see only part of the canvas, which must not change what is sure."""
    fields = [{"algorithm": "factor", "factor": factor} for factor in (0.5, 1.0, 2.0)]
    fields += [{"algorithm": "threshold", "threshold": t} for t in (0.2, 0.9)]
    fields += [{"algorithm": "low_confidence", "steps": steps} for steps in (7, 20)]
    cases = [
        case_of(engine, 11 + 9 * number, 36, 12, cache=cache, **values)
        for number, values in enumerate(fields)
        for cache in CACHES
    ]
    assert failures(engine, cases) == []


@uses("llada")
def test_settled_positions_answer_as_the_reference(engine: Engine) -> None:
    """d3LLM's rule, in blocks one after the other; with 0 one token per step."""
    cases = [
        case_of(
            engine,
            7 + 8 * number,
            36,
            12,
            "entropy_threshold",
            cache=cache,
            entropy_threshold=threshold,
        )
        for number, threshold in enumerate((0.0, 0.5, 1.5, 2.5, 9.0))
        for cache in CACHES
    ]
    assert len({str(case.answered().nfe) for case in cases}) > 5
    assert failures(engine, cases) == []


@uses("dream")
def test_rules_of_dream_answer_as_the_reference(engine: Engine) -> None:
    """Logits are shifted: a block's first token is that of its refresh, and no row of
    a cached step may be taken for its neighbour's."""
    cases = [
        case_of(engine, 5 + 7 * number, 36, block, algorithm, cache=cache, **fields)
        for number, block in enumerate((1, 2, 12, 16, None))
        for cache in ("prefix", "dual")
        for algorithm, fields in (
            ("threshold", {"threshold": 0.2}),
            ("threshold", {"threshold": 0.8}),
            ("maskgit_plus", {"steps": 18}),
            ("topk_margin", {"steps": 36, "eps": 0.1}),
            ("entropy", {"steps": 12}),
            ("entropy", {"steps": 5}),
        )
    ]
    assert failures(engine, cases) == []


# Lengths


@uses(*BOTH)
def test_answers_of_any_length_answer_as_the_reference(engine: Engine) -> None:
    """A canvas reaches past `max_tokens` up to the end of its last block, and what
    lies there is seen by all, but never returned."""
    make, rule = case_of, "low_confidence"
    if engine.spec.checkpoint == "dream-pub0":
        make, rule = dream_case, "maskgit_plus"
    cases = [
        make(engine, length, gen, block, rule, cache=cache, **fields)
        for length, gen, block in (
            (1, 1, 1),
            (9, 7, 1),
            (2, 10, 3),
            (31, 1, 8),
            (32, 20, 8),
            (30, 5, 16),
            (40, 33, 64),
        )
        for cache in CACHES
        for fields in ({}, {"steps": max(1, gen // 3)})
    ]
    assert failures(engine, cases) == []


@uses(*BOTH)
def test_mask_ids_in_a_prompt_are_tokens_like_others(engine: Engine) -> None:
    """A prompt that talks about the mask token must not be decoded itself."""
    make = case_of if engine.spec.checkpoint == "llada-pub0" else dream_case
    cases = [
        make(
            engine, length, 16, 8, "threshold", threshold=0.3, cache=cache, cfg_scale=s
        )
        for length in (9, 40)
        for cache in CACHES
        for s in (0.0, 1.0)
        if make is case_of or cache != "none"
    ]
    for case in cases:
        case.prompt[2::3] = [MASK] * len(case.prompt[2::3])
    assert failures(engine, cases) == []


class Cut:
    """A reference model of a sequence that ends at `end`: nothing past it is seen, and
    the reference decodes it last, being sure of nothing there."""

    def __init__(self, model: LLaDA, end: int) -> None:
        self.model, self.config, self.end = model, model.config, end
        self.cache = Cache(model.config.n_layers, end)

    def __call__(self, ids: Tensor, start: int, cache: Cache | None) -> Tensor:
        logits = torch.zeros(len(ids), self.config.vocab_size)
        seen = ids[: self.end - start]
        logits[: len(seen)] = self.model(seen, start, cache and self.cache)
        return logits


@uses("llada")
def test_the_last_block_is_cut_by_the_model_length(engine: Engine) -> None:
    """It must end exactly there: what lies past it has no pages, and no positions."""
    model = reference_model(engine.spec.checkpoint)
    assert isinstance(model, LLaDA)
    cases = [
        case_of(engine, MODEL_LEN - left, 64, 16, cache=cache, **fields)
        for left in (1, 11, 29)
        for cache in CACHES
        for fields in (
            {"algorithm": "threshold", "threshold": 0.2},
            {"algorithm": "low_confidence"},
        )
    ]
    for case in cases:
        left = MODEL_LEN - len(case.prompt)
        tokens, _ = llada_generate.generate(
            Cut(model, MODEL_LEN),
            case.prompt,
            left,
            16,
            mask_id=MASK,
            threshold=case.threshold,
            cache=case.cache or "none",
        )
        [output] = engine.ask([case])
        assert tokens_of(output) == tokens, str(case)
        assert output.outputs[0].finish_reason == "length"


@uses("llada-tight")
def test_a_request_that_no_forward_can_hold_is_refused(engine: Engine) -> None:
    """It would wait for ever, and all others behind it."""
    from vllm.exceptions import VLLMValidationError

    good = case_of(engine, TIGHT_BUDGET - 64, 64, 16)
    for bad, numbers in (
        (replace(good, gen_length=65), ["96", "80", "65", "16", "176"]),
        (replace(good, prompt=[5, *good.prompt]), ["97", "161"]),
        (case_of(engine, 60, 20, 8, cfg_scale=1.5), ["60", "24", "1.5", "180"]),
        (case_of(engine, 190, 13, 13), ["190", "13", "203"]),
    ):
        with pytest.raises(VLLMValidationError) as error:
            engine.ask([good, bad, good])
        said = str(error.value)
        numbers += [str(TIGHT_BUDGET), "max_num_batched_tokens"]
        assert [n for n in numbers if n not in said] == [], said
    assert failures(engine, [good, case_of(engine, 40, 16, 8, cfg_scale=1.5)]) == []


@uses("llada-tight")
def test_golden_tokens_where_few_requests_fit_a_step(engine: Engine) -> None:
    """A request whose step has no room must wait as it is, and not for ever."""
    cases = golden_cases(engine.spec.checkpoint)
    before = engine.counter("num_preemptions")
    assert differences(cases, engine.answers(cases)) == []
    # Pages are short as well, but whoever runs has all of its own.
    assert engine.counter("num_preemptions") == before


# Ends, trajectories, logprobs


@uses("llada")
def test_a_budget_of_forwards_ends_a_request(engine: Engine) -> None:
    """A refresh is a denoising forward like others, and counts once with guidance."""
    cases = [
        case_of(engine, 20, 24, 8, "sequential", cache=cache, cfg_scale=scale)
        for cache in CACHES
        for scale in (0.0, 0.5)
    ]
    whole = engine.answers(cases)
    for budget in (1, 8, 11):
        limited = [{**case.fields, "dllm_max_nfe": budget} for case in cases]
        requests = [(c, {"extra_args": f}) for c, f in zip(cases, limited, strict=True)]
        assert answers_of(engine, requests) == [answer[:budget] for answer in whole]
        [output] = engine.ask(cases[-1:], extra_args=limited[-1])
        assert engine.forwards(output) == budget
        assert output.outputs[0].finish_reason == "length"


@uses(*BOTH)
def test_a_trajectory_names_each_steps_tokens(engine: Engine) -> None:
    """Steps of the emission, or of another block, would not be a permutation."""
    rule = "low_confidence" if engine.spec.checkpoint == "llada-pub0" else "margin"
    for cache in CACHES:
        for algorithm in (rule, "sequential"):
            case = case_of(engine, 21, 30, 12, algorithm, cache=cache)
            fields = {**case.fields, "dllm_return_trajectory": True}
            [output] = engine.ask([case], extra_args=fields)
            steps = output.kv_transfer_params["dllm_trajectory"]
            blocks = [steps[:12], steps[12:24]]
            if algorithm == "sequential":
                assert steps == [*range(12), *range(12), *range(6)]
            else:
                assert [sorted(block) for block in blocks] == [[*range(12)]] * 2
                assert blocks != [[*range(12)]] * 2
            if rule == "margin" and cache != "none":
                assert steps[::12] == [0, 0, 0]


@uses(*BOTH)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 7}])
def test_logprobs_are_those_of_the_deciding_step(
    engine: Engine, sampling: dict[str, float]
) -> None:
    """Those of the emitting step would see the token itself, and be near zero."""
    cases = [
        case_of(engine, 19, 20, block, "sequential", cache=cache, cfg_scale=scale)
        for block, cache in ((8, "none"), (20, "prefix"), (8, "dual"))
        for scale in (0.0, 1.0)
    ]
    plain = engine.answers(cases, **sampling)
    outputs = engine.ask(cases, logprobs=256, **sampling)
    assert [tokens_of(output) for output in outputs] == plain
    chosen = []
    for output in outputs:
        tokens, logprobs = tokens_of(output), output.outputs[0].logprobs
        assert logprobs is not None and len(logprobs) == len(tokens)
        for token, position in zip(tokens, logprobs, strict=True):
            values = {t: entry.logprob for t, entry in position.items()}
            assert values[MASK] == -math.inf
            assert math.isclose(sum(map(math.exp, values.values())), 1, abs_tol=1e-4)
            better = sum(value > values[token] for value in values.values())
            assert position[token].rank == better + 1
            assert sampling or better == 0
            chosen.append(math.exp(values[token]))
    # These models are sure of little: a decoded token would be of itself.
    assert sum(chosen) / len(chosen) < 0.9


# Sampling


def words_of(engine: Engine, tokens: list[int]) -> dict[int, str]:
    """Text of those tokens that the tokenizer gives back for it."""
    tokenizer = engine.llm.get_tokenizer()
    words = {token: tokenizer.decode([token]) for token in tokens}
    return {t: word for t, word in words.items() if tokenizer.encode(word) == [t]}


@uses(*BOTH)
def test_constraints_hold_at_every_position(engine: Engine) -> None:
    """Applied to a row of another position or request they would let some through."""
    cases = [
        case_of(
            engine, 15 + number, 20, block, cache=cache, steps=steps, cfg_scale=scale
        )
        for number, cache in enumerate(CACHES)
        for block in (8, None)
        for steps in (20, 5)
        for scale in (0.0, 1.0)
    ]
    for answer in engine.answers(cases, allowed_token_ids=[7, 8, 9, MASK]):
        assert set(answer) <= {7, 8, 9}
    for answer in engine.answers(cases, logit_bias={42: 100.0}):
        assert set(answer) == {42}
    free = engine.answers(cases)
    requests = [
        (case, {"logit_bias": {answer[0]: -100.0}})
        for case, answer in zip(cases, free, strict=True)
    ]
    answers = answers_of(engine, requests)
    assert not any(old[0] in new for old, new in zip(free, answers, strict=True))
    banned = [words_of(engine, answer) for answer in free]
    assert sum(map(len, banned)) > 4 * len(cases)
    requests = [
        (case, {"bad_words": [*words.values()]})
        for case, words in zip(cases, banned, strict=True)
    ]
    answers = answers_of(engine, requests)
    pairs = zip(banned, answers, strict=True)
    assert not any(words.keys() & set(answer) for words, answer in pairs)
    eager = {"logit_bias": {EOS: 100.0}, "ignore_eos": False}
    assert engine.answers(cases, **eager) == [[EOS]] * len(cases)
    for answer in engine.answers(cases, **eager, min_tokens=10):
        assert len(answer) == 11
        assert answer.index(EOS) == 10


@uses(*BOTH)
def test_penalties_push_repeated_tokens_away(engine: Engine) -> None:
    """Counts of another request, or none, would change nothing."""
    cases = [
        case_of(engine, 15 + n, 40, block, "low_confidence", cache=cache, steps=40)
        for n, cache in enumerate(CACHES)
        for block in (10, None)
    ]
    repeats = sum(len(answer) - len(set(answer)) for answer in engine.answers(cases))
    for penalty in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        answers = engine.answers(cases, **{penalty: 2.0})
        fewer = sum(len(answer) - len(set(answer)) for answer in answers)
        assert fewer < repeats, penalty
