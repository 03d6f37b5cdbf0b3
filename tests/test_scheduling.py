"""Which requests a step takes, and that each gets its turn."""

from dataclasses import replace
from typing import Any

import pytest

from tests.engines import Engine, Request, sampling_params, uses
from tests.full_attention import case_of
from tests.golden_cases import differences, golden_cases

pytestmark = pytest.mark.timeout(300)
PAGE = 32


def added(engine: Engine, request: Request, name: str) -> Any:
    """The request as the scheduler keeps it, in its queue."""
    case, sampling = request
    llm = engine.llm.llm_engine
    prompt = {"prompt_token_ids": case.prompt}
    llm.add_request(name, prompt, sampling_params(case, sampling))
    [found] = core_of(engine).scheduler.waiting
    return found


def core_of(engine: Engine) -> Any:
    """vLLM's EngineCore: its scheduler and its executor."""
    return engine.llm.llm_engine.engine_core.engine_core


def forwarded(engine: Engine, step: Any) -> Any:
    """What the worker answers to a step."""
    executor = core_of(engine).model_executor
    executor.execute_model(step)
    return executor.sample_tokens(None)


@uses("sdar16")
def test_a_step_is_read_with_its_own_spans(engine: Engine) -> None:
    """With two steps on their way the older one would be read as the newer."""
    cases = golden_cases("sdar-pub1", 16)[:2]
    scheduler = core_of(engine).scheduler
    requests, steps = [], []
    for number, case in enumerate(cases):
        requests.append(added(engine, (case, {}), f"in-flight-{number}"))
        steps.append(scheduler.schedule())
    assert [list(step.num_scheduled_tokens) for step in steps] == [
        [request.request_id] for request in requests
    ]
    outputs = [forwarded(engine, step) for step in steps]
    for step, output in zip(steps, outputs, strict=True):
        scheduler.update_from_output(step, output)
    while engine.llm.llm_engine.has_unfinished_requests():
        engine.llm.llm_engine.step()
    answers = [list(request.output_token_ids) for request in requests]
    assert differences(cases, answers) == []


@uses("llada-tight")
def test_a_long_request_is_not_overtaken(engine: Engine) -> None:
    """Shorter ones fit into what is left of a step for as long as they come."""
    short = case_of(engine, 10, 20, 5, "low_confidence", cache="none")
    long = case_of(engine, 60, 70, 5, "low_confidence", cache="none")
    queue = [short, short, long, *[short] * 12]
    llm = engine.llm.llm_engine
    for number, case in enumerate(queue):
        prompt = {"prompt_token_ids": case.prompt}
        llm.add_request(f"queued-{number}", prompt, sampling_params(case, {}))
    begun: list[int] = []
    scheduler = core_of(engine).scheduler
    while llm.has_unfinished_requests():
        llm.step()
        running = [int(r.request_id.split("-")[1]) for r in scheduler.running]
        begun += [number for number in running if number not in begun]
    assert begun == sorted(begun) and len(begun) == len(queue)


def undecided(engine: Engine, **fields: Any) -> Request:
    """A request with a long prompt that emits nothing in its first step."""
    case = golden_cases("sdar-pub1", 16)[0]
    prompt = [2 + number % 100 for number in range(3 * PAGE)]
    extra_args = {"dllm_algorithm": "low_confidence_static", "dllm_steps": 16, **fields}
    return replace(case, prompt=prompt), {"extra_args": extra_args}


@uses("sdar16")
@pytest.mark.parametrize("fields", [{"dllm_max_nfe": 1}, {"dllm_stream_drafts": True}])
def test_figures_of_a_prefill_come_with_the_first_answer(
    engine: Engine, fields: dict[str, Any]
) -> None:
    """vLLM looks for them there alone, be it an end without a token or a draft."""
    [cold] = engine.ask_each([undecided(engine, **fields)])
    assert (cold.num_cached_tokens, cold.num_cache_creation_tokens) == (0, 3 * PAGE)
    before = engine.counter("prompt_tokens")
    [warm] = engine.ask_each([undecided(engine, **fields)])
    cached = warm.num_cached_tokens
    assert cached == 2 * PAGE and warm.num_cache_creation_tokens == PAGE
    assert engine.counter("prompt_tokens") - before == 3 * PAGE
