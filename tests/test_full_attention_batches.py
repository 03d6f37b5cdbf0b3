"""Full attention on a real engine: all kinds of requests at once, and disturbed."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from tests.engines import Engine, Request, sampling_params, tokens_of, uses
from tests.full_attention import BOTH, CACHES, answers_of, case_of, guided_cases
from tests.golden_cases import MASK, differences, golden_cases, reference_model
from tests.reference import joint_threshold
from vllm_dllm.decoding.registry import RULES, get_rule

pytestmark = pytest.mark.timeout(400)

SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 0.8, "top_k": 5, "presence_penalty": 1.0},
    {"temperature": 1.2, "min_p": 0.1, "logit_bias": {5: 2.0}},
]


def everything(engine: Engine) -> list[Request]:
    """Every rule with every cache, with other shapes, guidance and sampling each."""
    requests = []
    every = [get_rule(rule) for rule in RULES]
    rules = [
        name
        for name, rule in zip(RULES, every, strict=True)
        if "moves" not in rule.needs and not rule.softens
    ]
    for number, rule in enumerate([*rules, "adablock"]):
        for offset, cache in enumerate(CACHES):
            index = 3 * number + offset
            case = case_of(
                engine,
                (3, 17, 33, 60)[index % 4],
                (20, 13, 24)[(index + number) % 3],
                (8, None, 5, 1, 16)[index % 5],
                "threshold" if rule == "confidence_threshold" else rule,
                cache=cache,
                cfg_scale=(0.0, 0.0, 0.7)[(index + number // 2) % 3],
                logits_eos_inf=index % 4 == 1,
                confidence_eos_eot_inf=index % 7 == 1,
                suffix=(5, 6, 7) * (index % 4 == 2),
            )
            sampling = {**SAMPLING[index % len(SAMPLING)], "seed": index}
            fields = {**case.fields, "dllm_return_trajectory": index % 2 == 0}
            if rule == "threshold":
                fields["dllm_threshold"] = 0.3
            if rule == "adablock":
                fields["dllm_delimiter_ids"] = [*range(2, 90)]
                fields["dllm_delimiter_threshold"] = 0.05 * offset
            if rule in ("maskgit_plus", "topk_margin", "neg_entropy"):
                fields["dllm_alg_temp"] = 0.5 * offset
            requests.append((case, {**sampling, "extra_args": fields}))
    return requests


@uses(*BOTH)
def test_every_request_answers_alike_alone_and_among_all_others(engine: Engine) -> None:
    """Blocks, caches, rules, guidance and noise are per request, in whatever batch."""
    golden = golden_cases(engine.spec.checkpoint)[::4]
    requests = everything(engine) + [(case, {}) for case in golden]
    alone = [tokens for request in requests for tokens in answers_of(engine, [request])]
    assert alone[-len(golden) :] == [case.tokens for case in golden]
    for (case, _), tokens in zip(requests, alone, strict=True):
        assert len(tokens) == case.gen_length and MASK not in tokens, str(case)
    assert answers_of(engine, requests) == alone
    assert answers_of(engine, requests[::-1]) == alone[::-1]
    reseeded = [(case, {**sampling, "seed": 99}) for case, sampling in requests]
    others = answers_of(engine, reseeded)
    for index, (request, sampling) in enumerate(requests):
        if sampling.get("temperature"):
            assert others[index] != alone[index], f"{request} ignores its seed"


@uses(*BOTH)
def test_tokens_are_edited_as_by_a_plain_loop(engine: Engine) -> None:
    """With a cache Dream's steps have no row for the first token of a block: edited
    all the same, it would become its neighbour's."""
    model = reference_model(engine.spec.checkpoint)
    is_shifted = engine.spec.checkpoint.startswith("dream")
    cases = []
    for cache, (prompt_len, gen_length, block), edit_threshold in product(
        CACHES, ((5, 16, 4), (33, 21, 8), (64, 32, 16)), (0.0, 0.1)
    ):
        rule = {"threshold": 0.2, "edit_threshold": edit_threshold, "max_post_steps": 3}
        shape = (prompt_len, gen_length, block, "joint_threshold")
        case = case_of(engine, *shape, cache=cache, **rule)
        tokens = joint_threshold.generate(
            model,
            case.prompt,
            gen_length,
            block,
            mask_id=MASK,
            cache=cache,
            is_shifted=is_shifted,
            **rule,
        )
        cases.append(replace(case, tokens=tokens))
    assert differences(cases, engine.answers(cases)) == []


@uses(*BOTH)
@pytest.mark.parametrize("every", [2, 5])
def test_golden_tokens_after_many_preemptions(engine: Engine, every: int) -> None:
    """A preempted request loses its keys in the middle of a block: those that later
    steps read must be made again as they were, not from what is decoded by now."""
    cases = golden_cases(engine.spec.checkpoint)
    cases += [case.answered() for case in guided_cases(engine)]
    outputs = engine.ask_preempting([(case, {}) for case in cases], every)
    preempted = [
        (case.cache, bool(case.cfg_scale))
        for case, output in zip(cases, outputs, strict=True)
        if output.metrics.num_preemptions > 1
    ]
    assert set(preempted) == {(c, guided) for c in CACHES for guided in (True, False)}
    assert differences(cases, [tokens_of(output) for output in outputs]) == []


@uses(*BOTH, "llada-ahead", "dream-ahead")
def test_every_request_answers_alike_after_preemptions(engine: Engine) -> None:
    """What a rule remembers of a block, its noise, logprobs and trajectory must come
    back with the block."""
    requests = everything(engine)
    requests = [(case, {**sampling, "logprobs": 2}) for case, sampling in requests]
    cases = [case for case, _ in requests]
    calm = engine.ask_each(requests)
    disturbed = engine.ask_preempting(requests, every=3)
    assert sum(output.metrics.num_preemptions for output in disturbed) > len(cases)
    for case, expected, output in zip(cases, calm, disturbed, strict=True):
        assert tokens_of(output) == tokens_of(expected), str(case)
        assert output.kv_transfer_params == expected.kv_transfer_params, str(case)
        for old, new in zip(
            expected.outputs[0].logprobs, output.outputs[0].logprobs, strict=True
        ):
            assert list(new) == list(old)


@uses(*BOTH, "llada-ahead")
def test_aborted_requests_hold_nothing(engine: Engine) -> None:
    """Pages, slots or saved blocks of aborted requests would be lost for good."""
    core, requests = engine.llm.llm_engine, everything(engine)
    for steps in (1, 2, 9):
        ids = [f"aborted-{steps}-{number}" for number in range(len(requests))]
        for request_id, (case, sampling) in zip(ids, requests, strict=True):
            prompt = {"prompt_token_ids": case.prompt}
            core.add_request(request_id, prompt, sampling_params(case, sampling))
        for _ in range(steps):
            core.step()
        core.reset_prefix_cache(reset_running_requests=True)
        assert core.has_unfinished_requests()
        core.abort_request(ids)
        engine.check_idle()
    golden = golden_cases(engine.spec.checkpoint)[::3]
    assert differences(golden, engine.answers(golden)) == []
