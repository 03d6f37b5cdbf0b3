"""Which requests a step takes, and that each gets its turn."""

from dataclasses import replace
from typing import Any

import pytest

from tests.engines import Engine, Request, sampling_params, tokens_of, uses
from tests.full_attention import case_of
from tests.golden_cases import differences, golden_cases
from tests.watchdog import watched

pytestmark = pytest.mark.timeout(300)
PAGE = 32


def added(engine: Engine, request: Request, name: str) -> Any:
    """The request as the scheduler keeps it, in its queue."""
    case, sampling = request
    llm = engine.llm.llm_engine
    prompt = {"prompt_token_ids": case.prompt}
    llm.add_request(name, prompt, sampling_params(case, sampling))
    waiting = core_of(engine).scheduler.waiting
    [found] = [r for r in waiting if r.request_id.rsplit("-", 1)[0] == name]
    return found


def finish(engine: Engine) -> list[Any]:
    """Run all requests to their ends; what is handed out on the way."""
    llm, outputs = engine.llm.llm_engine, []
    with watched(llm):
        while llm.has_unfinished_requests():
            outputs += llm.step()
    return outputs


def core_of(engine: Engine) -> Any:
    """vLLM's EngineCore: its scheduler and its executor."""
    return engine.llm.llm_engine.engine_core.engine_core


def forwarded(engine: Engine, step: Any) -> Any:
    """What the worker answers to a step."""
    executor = core_of(engine).model_executor
    executor.execute_model(step)
    return executor.sample_tokens(None)


@uses("sdar16")
def test_no_worker_is_asked_for_its_canvas(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step would wait for one more answer, which nobody reads."""
    asked: list[None] = []
    executor = core_of(engine).model_executor
    monkeypatch.setattr(executor, "take_draft_token_ids", lambda: asked.append(None))
    case = golden_cases("sdar-pub1", 16)[0]
    assert len(engine.answers([case])[0]) > 0
    assert not asked


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
    finish(engine)
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
    extra_args = {"dllm_algorithm": "low_confidence_static", "dllm_steps": 16}
    for first in range(2, 20):
        prompt = [first + number % 100 for number in range(3 * PAGE)]
        request = replace(case, prompt=prompt)
        one_step = {"extra_args": {**extra_args, "dllm_max_nfe": 1}}
        [output] = engine.ask_each([(request, one_step)])
        if not tokens_of(output):
            engine.forget_prefixes()
            return request, {"extra_args": {**extra_args, **fields}}
    raise AssertionError("every prompt decides its first position first")


@uses("sdar16")
@pytest.mark.parametrize("fields", [{"dllm_max_nfe": 1}, {"dllm_stream_drafts": True}])
def test_figures_of_a_prefill_come_with_the_first_answer(
    engine: Engine, fields: dict[str, Any]
) -> None:
    """vLLM looks for them there alone, be it an end without a token or a draft."""
    request = undecided(engine, **fields)
    [cold] = engine.ask_each([request])
    assert (cold.num_cached_tokens, cold.num_cache_creation_tokens) == (0, 3 * PAGE)
    before = engine.counter("prompt_tokens")
    [warm] = engine.ask_each([request])
    cached = warm.num_cached_tokens
    assert cached == 2 * PAGE and warm.num_cache_creation_tokens == PAGE
    assert engine.counter("prompt_tokens") - before == 3 * PAGE


@uses("sdar16")
def test_a_request_that_is_aborted_in_its_step_disturbs_nobody(engine: Engine) -> None:
    """vLLM forgets it between the forward and the reading of its output."""
    core = core_of(engine)
    cases = golden_cases("sdar-pub1", 16)[:3]
    names = [f"left-{number}" for number in range(len(cases))]
    requests = [
        added(engine, (case, {}), name) for case, name in zip(cases, names, strict=True)
    ]
    step = core.scheduler.schedule()
    output = forwarded(engine, step)
    engine.llm.llm_engine.abort_request([names[1]])
    core.scheduler.update_from_output(step, output)
    finish(engine)
    answers = [list(request.output_token_ids) for request in requests]
    assert differences(cases[::2], answers[::2]) == [] and answers[1] == []


@uses("sdar16", "llada")
def test_a_pause_in_the_middle_of_blocks_changes_no_token(engine: Engine) -> None:
    """Weights are exchanged in one; the pages may be taken away meanwhile."""
    from vllm.v1.core.sched.interface import PauseState

    scheduler, llm = core_of(engine).scheduler, engine.llm.llm_engine
    cases = golden_cases(engine.spec.checkpoint, engine.spec.block)[:12]
    requests = []
    for number, case in enumerate(cases):
        requests.append(added(engine, (case, {}), f"paused-{number}"))
        llm.step()
    for lost in (False, True):
        scheduler.set_pause_state(PauseState.PAUSED_ALL)
        if lost:
            scheduler.reset_prefix_cache(reset_running_requests=True)
        tokens = [request.num_tokens for request in requests]
        llm.step()
        assert [request.num_tokens for request in requests] == tokens
        scheduler.set_pause_state(PauseState.UNPAUSED)
        llm.step()
    finish(engine)
    answers = [list(request.output_token_ids) for request in requests]
    assert differences(cases, answers) == []


@uses("sdar16")
@pytest.mark.parametrize("interval", [4, 1000])
def test_a_stream_in_intervals_holds_back_drafts_and_no_token(
    engine: Engine, interval: int
) -> None:
    """vLLM drops an answer without enough new tokens, and with it its draft."""
    whole, drafts = streamed(engine, 1)
    answer, fewer = streamed(engine, interval)
    assert answer == whole and 0 < fewer < drafts


def streamed(engine: Engine, interval: int) -> tuple[list[int], int]:
    """The tokens of an answer in pieces, and the number of its drafts."""
    from vllm.sampling_params import RequestOutputKind

    case = golden_cases("sdar-pub1", 16)[0]
    extra_args = {"dllm_algorithm": "low_confidence_static", "dllm_steps": 8}
    sampling = {
        "extra_args": {**extra_args, "dllm_stream_drafts": True},
        "stream_interval": interval,
        "output_kind": RequestOutputKind.DELTA,
    }
    added(engine, (case, sampling), f"streamed-{interval}")
    pieces = finish(engine)
    drafts = [
        piece for piece in pieces if "dllm_draft" in (piece.kv_transfer_params or {})
    ]
    return [t for piece in pieces for t in piece.outputs[0].token_ids], len(drafts)


@uses("sdar16", "llada")
def test_a_session_is_refused(engine: Engine) -> None:
    """vLLM keeps computed tokens for its next turn: those of a block would be lost."""
    from vllm.exceptions import VLLMValidationError

    case = golden_cases(engine.spec.checkpoint, engine.spec.block)[0]
    llm = engine.llm.llm_engine
    with pytest.raises(VLLMValidationError, match="streaming input"):
        llm.input_processor.process_inputs(
            "session-0",
            {"prompt_token_ids": case.prompt},
            sampling_params(case, {}),
            ("generate",),
            resumable=True,
        )
