"""Steps that are planned before the tokens of the last one are there change nothing.

Golden tokens, preemption, prefix hits, aborts and grammars of such engines are tested
where those of others are (`-ahead`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.answers import forwards_of
from tests.engines import Engine, Request, tokens_of, uses
from tests.golden_cases import differences, golden_cases
from tests.multi_block_cases import multi_block_cases
from vllm_dllm import course

pytestmark = pytest.mark.timeout(400)


@contextmanager
def one_at_a_time(engine: Engine) -> Iterator[None]:
    """Plan each step when the last one is back, as without `--async-scheduling`."""
    core = engine.llm.llm_engine.engine_core.engine_core
    while core.batch_queue:
        core.step_fn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "step_fn", core.step)
        yield


def requests_of(engine: Engine) -> list[Request]:
    """Golden cases that end in all ways, and tell what there is to tell."""
    requests: list[Request] = []
    spec = engine.spec
    for number, case in enumerate(golden_cases(spec.checkpoint, spec.block)):
        sampling: dict[str, Any] = {}
        if number % 4 == 1:
            sampling = {"stop_token_ids": [case.tokens[len(case.tokens) // 3]]}
        elif number % 4 == 2:
            fields = {"dllm_max_nfe": 1 + case.nfe // 3, "dllm_return_rest": True}
            sampling = {"extra_args": case.fields | fields}
        elif number % 4 == 3:
            fields = {"dllm_return_trajectory": True}
            sampling = {"extra_args": case.fields | fields, "logprobs": 2}
            sampling["ignore_eos"] = False
        elif number % 8 == 4:  # the text of token t is wt
            sampling = {"temperature": 1.0, "seed": number, "stop": ["w1", "w2"]}
        requests.append((case, sampling))
    if spec.block:
        several = multi_block_cases(spec.checkpoint, spec.block)[:8]
        requests += [(case, case.sampling) for case in several]
    return requests


def told(output: Any) -> tuple[Any, ...]:
    """All that a client is told, but for the digits of logprobs."""
    answer = output.outputs[0]
    likely = [list(position) for position in answer.logprobs or ()]
    ends = answer.finish_reason, answer.stop_reason
    return (
        *ends,
        tokens_of(output),
        forwards_of(output),
        likely,
        output.kv_transfer_params,
    )


@uses("sdar4-ahead", "editing8-ahead", "llada-ahead", "dream-ahead")
def test_answers_and_forwards_are_those_of_one_step_at_a_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step for a block that had ended must decide nothing, and not be counted; one
    that is under way when a request ends must leave nothing behind."""
    requests, ahead = requests_of(engine), 0
    original = course.span_ahead

    def span_ahead(*asked: Any) -> Any:
        nonlocal ahead
        ahead += 1
        return original(*asked)

    monkeypatch.setattr(course, "span_ahead", span_ahead)
    with one_at_a_time(engine):
        expected = engine.ask_each(requests)
    assert ahead == 0
    engine.forget_prefixes()
    outputs = engine.ask_each(requests)
    assert ahead > sum(map(forwards_of, outputs)) // 2
    for (case, _), before, after in zip(requests, expected, outputs, strict=True):
        assert told(after) == told(before), str(case)
    cases, whole = zip(
        *((c, o) for (c, s), o in zip(requests, outputs, strict=True) if not s),
        strict=True,
    )
    assert differences(list(cases), [tokens_of(output) for output in whole]) == []
    engine.check_idle()
