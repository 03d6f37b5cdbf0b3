"""Sampling parameters on a real engine: each does what it says, and nothing else."""

import math
from collections import Counter

import pytest
import torch

from tests.engines import Engine, tokens_of, uses
from tests.golden_cases import EOS, MASK, Case, golden_cases, reference_model
from tests.reference.masks import block_causal

pytestmark = pytest.mark.timeout(400)
MIXED = [
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.7, "top_p": 0.9, "seed": 2},
    {"temperature": 0.8, "top_k": 5, "seed": 3},
    {"temperature": 1.2, "min_p": 0.1, "seed": 4},
    {"temperature": 0, "presence_penalty": 1.5, "repetition_penalty": 1.2},
    {"temperature": 0.9, "frequency_penalty": 0.5, "seed": 5},
    {"temperature": 0, "logit_bias": {5: 2.0}},
    {"temperature": 0},
]


def cases_of(engine: Engine, count: int) -> list[Case]:
    return golden_cases(engine.spec.checkpoint, engine.spec.block)[:count]


def together(engine: Engine, cases: list[Case]) -> list[list[int]]:
    """One batch, each case with parameters of its own."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            max_tokens=case.gen_length,
            ignore_eos=True,
            extra_args=case.fields,
            **MIXED[index % len(MIXED)],
        )
        for index, case in enumerate(cases)
    ]
    prompts = [{"prompt_token_ids": case.prompt} for case in cases]
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    return [tokens_of(output) for output in outputs]


def one_by_one(engine: Engine, cases: list[Case]) -> list[list[int]]:
    answers = []
    for index, case in enumerate(cases):
        params = MIXED[index % len(MIXED)]
        answers += engine.answers([case], **params, ignore_eos=True)
    return answers


@uses("sdar4", "sdar16", "fastdllm2", "nemotron", "sdar16-tp2")
def test_a_seeded_request_answers_the_same_in_any_company(engine: Engine) -> None:
    """Noise drawn per batch, or from a state that others advance, would differ."""
    cases = cases_of(engine, 16)
    alone = one_by_one(engine, cases)
    assert together(engine, cases) == alone
    assert together(engine, cases[::-1]) != alone  # other parameters, other answers


@uses("sdar16-few-pages")
def test_a_seeded_request_answers_the_same_after_preemption(engine: Engine) -> None:
    """Noise that depends on the number of forwards would change on recomputation."""
    cases = cases_of(engine, 16)
    alone = one_by_one(engine, cases)
    before = engine.counter("num_preemptions")
    assert together(engine, cases) == alone
    assert engine.counter("num_preemptions") > before


@uses("sdar4")
@pytest.mark.parametrize(
    "filters", [{}, {"temperature": 0.6}, {"top_p": 0.8}, {"top_k": 7}, {"min_p": 0.05}]
)
def test_draws_follow_the_filtered_distribution(
    engine: Engine, filters: dict[str, float]
) -> None:
    """A filter in another order, or noise that is not uniform, shifts frequencies."""
    from vllm import SamplingParams

    number, block = 1500, engine.spec.block
    prompt = [9, 4, 77]
    assert len(prompt) == block - 1
    expected = expected_distribution(engine, prompt, **filters)
    params = [
        SamplingParams(
            **{"temperature": 1.0, **filters}, max_tokens=1, ignore_eos=True, seed=seed
        )
        for seed in range(number)
    ]
    outputs = engine.llm.generate(
        [{"prompt_token_ids": prompt}] * number, params, use_tqdm=False
    )
    counts = Counter(tokens_of(output)[0] for output in outputs)
    assert set(counts) <= set(expected.nonzero().flatten().tolist())
    common = (expected * number >= 5).nonzero().flatten().tolist()
    rest = number * (1 - expected[common].sum().item())
    pairs = [(counts[token], number * expected[token].item()) for token in common]
    if rest >= 5:
        pairs.append((number - sum(counts[token] for token in common), rest))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in pairs)
    freedom = len(pairs) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def expected_distribution(
    engine: Engine,
    prompt: list[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> torch.Tensor:
    """Of the one masked position after the prompt, from the reference model."""
    model = reference_model(engine.spec.checkpoint)
    ids = torch.tensor([*prompt, MASK])
    with torch.inference_mode():
        logits = model(ids, block_causal(len(prompt) + 1, engine.spec.block))[-1]
        logits = logits.double()
        logits[MASK] = -torch.inf
        probs = (logits / temperature).softmax(0)
    probs = probs.clone()
    if min_p:
        probs[probs < min_p * probs.max()] = 0
    order = probs.argsort(descending=True)
    if top_k:
        probs[order[top_k:]] = 0
    if top_p < 1:
        before = probs[order].cumsum(0) - probs[order]
        probs[order[before >= top_p]] = 0
    return probs / probs.sum()


@uses("sdar16")
def test_constraints_hold_at_every_position(engine: Engine) -> None:
    """Applied to a row of another position or request they would let some through."""
    cases = cases_of(engine, 6)
    for answer in engine.answers(cases, allowed_token_ids=[7, 8, 9, MASK]):
        assert set(answer) <= {7, 8, 9}
    for answer in engine.answers(cases, logit_bias={42: 100.0}):
        assert set(answer) == {42}
    free = engine.answers(cases)
    banned = free[0][0]
    for answer in engine.answers(cases, logit_bias={banned: -100.0}):
        assert banned not in answer


@uses("sdar16")
def test_min_tokens_keeps_end_tokens_out_of_the_first_positions(engine: Engine) -> None:
    """A block is decoded in any order: the ban is one of positions, not of steps."""
    cases = cases_of(engine, 6)
    eager = {"logit_bias": {EOS: 100.0}, "ignore_eos": False}
    assert engine.answers(cases, **eager) == [[EOS]] * len(cases)
    for answer in engine.answers(cases, **eager, min_tokens=10):
        assert len(answer) == 11
        assert answer.index(EOS) == 10


@uses("sdar16")
def test_penalties_push_repeated_tokens_away(engine: Engine) -> None:
    """Counts of another request, or none, would change nothing."""
    cases = cases_of(engine, 6)
    repeats = sum(len(answer) - len(set(answer)) for answer in engine.answers(cases))
    for penalty in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        answers = engine.answers(cases, **{penalty: 2.0})
        fewer = sum(len(answer) - len(set(answer)) for answer in answers)
        assert fewer < repeats, penalty


@uses("sdar16")
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 7}])
def test_logprobs_are_those_of_the_deciding_step(
    engine: Engine, sampling: dict[str, float]
) -> None:
    """Those of the emitting step would see the token itself, and be near zero."""
    cases = cases_of(engine, 8)
    plain = engine.answers(cases, **sampling)
    outputs = engine.ask(cases, logprobs=256, **sampling)
    assert [tokens_of(output) for output in outputs] == plain
    for output in outputs:
        tokens, logprobs = tokens_of(output), output.outputs[0].logprobs
        assert logprobs is not None and len(logprobs) == len(tokens)
        for token, position in zip(tokens, logprobs, strict=True):
            values = {t: entry.logprob for t, entry in position.items()}
            assert values[MASK] == -math.inf
            assert math.isclose(sum(map(math.exp, values.values())), 1, abs_tol=1e-4)
            better = sum(value > values[token] for value in values.values())
            assert position[token].rank == better + 1
            if not sampling:
                assert position[token].rank == 1


@uses("sdar16")
def test_first_logprobs_are_those_of_the_reference(engine: Engine) -> None:
    """A shifted row would give the distribution of a neighbour."""
    [case] = cases_of(engine, 1)
    [output] = engine.ask([case], logprobs=256, extra_args={"dllm_steps": 1})
    block = engine.spec.block
    ids = [*case.prompt, *[MASK] * (block - len(case.prompt))]
    model = reference_model(engine.spec.checkpoint)
    with torch.inference_mode():
        logits = model(torch.tensor(ids), block_causal(block, block)).double()
        logits[:, MASK] = -torch.inf
        expected = logits.log_softmax(-1)
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    for place in range(len(case.prompt), block):
        position = logprobs[place - len(case.prompt)]
        got = [position[token].logprob for token in range(MASK)]
        assert torch.allclose(
            torch.tensor(got).double(), expected[place, :MASK], atol=1e-4
        )


@uses("sdar16")
def test_a_trajectory_names_each_steps_tokens(engine: Engine) -> None:
    """Steps of the emission, or of another block, would not be a permutation."""
    [case] = [c for c in cases_of(engine, 32) if c.algorithm == "sequential"][:1]
    fields = {**case.fields, "dllm_return_trajectory": True}
    [output] = engine.ask([case], extra_args=fields)
    trajectory = output.kv_transfer_params["dllm_trajectory"]
    first = engine.spec.block - len(case.prompt) % engine.spec.block
    left_to_right = [*range(first), *range(engine.spec.block), *range(99)]
    assert trajectory == left_to_right[: case.gen_length]


@uses("sdar16")
def test_a_budget_of_forwards_ends_a_request(engine: Engine) -> None:
    """Without an end of its own the request would go on, or never answer."""
    [case] = [c for c in cases_of(engine, 32) if c.algorithm == "sequential"][:1]
    fields = {**case.fields, "dllm_max_nfe": 5}
    [output] = engine.ask([case], extra_args=fields)
    assert tokens_of(output) == case.tokens[:5]
    assert output.outputs[0].finish_reason == "length"
    assert engine.forwards(output) == 5


@uses("sdar16")
def test_a_budget_of_forwards_is_that_of_each_answer(engine: Engine) -> None:
    """Answers of one request would share it, or wait for one that ended."""
    [case] = [c for c in cases_of(engine, 32) if c.algorithm == "sequential"][:1]
    fields = {**case.fields, "dllm_max_nfe": 5}
    [output] = engine.ask([case], n=3, temperature=1.0, seed=3, extra_args=fields)
    ends = [(len(o.token_ids), o.finish_reason) for o in output.outputs]
    assert ends == [(5, "length")] * 3


@uses("sdar4")
def test_n_answers_of_a_seeded_request_differ(engine: Engine) -> None:
    """Children of a request with the same noise would all answer the same."""
    [case] = cases_of(engine, 1)
    outputs = [
        engine.ask([case], n=3, temperature=1.0, seed=seed)[0] for seed in (5, 5, 6)
    ]
    answers = [[tuple(o.token_ids) for o in output.outputs] for output in outputs]
    assert len(set(answers[0])) == 3
    assert answers[0] == answers[1] != answers[2]
