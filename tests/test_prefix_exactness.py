"""A shared page holds the KV of a cold run, wherever the answer before it ended."""

from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch

from tests.engines import Engine, sampling_params, tokens_of, uses
from tests.golden_cases import Case
from tests.new_cases import new_cases

pytestmark = pytest.mark.timeout(300)
PAGE = 32
ROUNDING = 1e-5
"""Between forwards of other positions beside those compared."""
END = 4 * PAGE
"""Where the answers end."""
NUMBERS = count()


def begun_cases(engine: Engine) -> list[Case]:
    """Of every rule, with answers that end where a page does."""
    spec = engine.spec
    cases = new_cases(spec.checkpoint, spec.block, [3, 20, 33, 64], 0)
    return [replace(c, gen_length=END - len(c.prompt)) for c in cases]


def with_kv(engine: Engine, case: Case) -> tuple[Any, list[torch.Tensor]]:
    """The request's answer; its prompt's whole pages, in each layer, after one step."""
    core = engine.llm.llm_engine
    scheduler = core.engine_core.engine_core.scheduler
    params = sampling_params(case, {"logprobs": 2})
    prompt = {"prompt_token_ids": case.prompt}
    core.add_request(f"read-{next(NUMBERS)}", prompt, params)
    core.step()
    [request] = scheduler.running
    [pages] = scheduler.kv_cache_manager.get_block_ids(request.request_id)
    whole = pages[: len(case.prompt) // PAGE]
    [layers] = engine.llm.collective_rpc(lambda worker: worker.model_runner.kv_caches)
    kv = [layer[whole] for layer in layers]
    while core.has_unfinished_requests():
        finished = [output for output in core.step() if output.finished]
    return finished[0], kv


def check_as_cold(engine: Engine, cases: list[Case]) -> list[int]:
    """Assert that each answers as without a cache; the tokens that each had cached."""
    warm = [with_kv(engine, case) for case in cases]
    for case, (output, kv) in zip(cases, warm, strict=True):
        engine.forget_prefixes()
        cold, cold_kv = with_kv(engine, case)
        assert cold.num_cached_tokens == 0
        for layer, cold_layer in zip(kv, cold_kv, strict=True):
            torch.testing.assert_close(layer, cold_layer, atol=ROUNDING, rtol=0)
        assert tokens_of(output) == tokens_of(cold), str(case)
        for found, expected in zip(
            output.outputs[0].logprobs, cold.outputs[0].logprobs, strict=True
        ):
            assert {t: lp.logprob for t, lp in found.items()} == pytest.approx(
                {t: lp.logprob for t, lp in expected.items()}, abs=ROUNDING
            )
    return [output.num_cached_tokens for output, _ in warm]


def check_following(
    engine: Engine, cases: list[Case], answers: list[list[int]]
) -> None:
    """Ask on behind the answers, which are still in the cache but for their last block.

    The page that ends with the answer is shared by nobody: it is not final.
    """
    following = [
        replace(case, prompt=[*case.prompt, *tokens, 7, 9], gen_length=PAGE)
        for case, tokens in zip(cases, answers, strict=True)
    ]
    assert check_as_cold(engine, following) == [END - PAGE] * len(cases)


@uses("sdar4", "sdar16", "fastdllm2", "llada32", "moving8")
def test_the_last_page_of_an_answer_is_not_shared(engine: Engine) -> None:
    """Its last forward still had masks in it; vLLM 0.33 shares it all the same."""
    cases = begun_cases(engine)
    check_following(engine, cases, engine.answers(cases, ignore_eos=True))


@uses("sdar4", "sdar16")
def test_the_last_page_before_a_stop_is_not_shared(engine: Engine) -> None:
    """A stop ends a request in the middle of vLLM's bookkeeping of its last step."""
    cases = begun_cases(engine)
    answers = engine.answers(cases, ignore_eos=True)
    engine.forget_prefixes()
    stopped = [
        (case, tokens)
        for case, tokens in zip(cases, answers, strict=True)
        if tokens[-1] not in tokens[:-1]
    ]
    requests = [
        (
            replace(case, gen_length=case.gen_length + PAGE),
            {"ignore_eos": True, "stop_token_ids": tokens[-1:]},
        )
        for case, tokens in stopped
    ]
    outputs = engine.ask_each(requests)
    assert stopped and [tokens_of(o) for o in outputs] == [t for _, t in stopped]
    check_following(engine, [case for case, _ in stopped], [t for _, t in stopped])
