"""Forwards in the usage: of our answers, and of no others."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.generate.base.protocol import (
    PerRequestMetrics,
    SpeculativeDecodingMetrics,
)
from vllm.entrypoints.serve.engine.protocol import UsageInfo
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

from vllm_dllm.report import ForwardCount
from vllm_dllm.serving.usage import Forwards, forwards_of, with_forwards


def result(metrics: RequestSpecDecodeMetrics | None) -> Any:
    return SimpleNamespace(outputs=[SimpleNamespace(spec_decode_metrics=metrics)])


def answer(metrics: PerRequestMetrics | None, tokens: int = 12) -> dict[str, Any]:
    usage = UsageInfo(prompt_tokens=3, completion_tokens=tokens, total_tokens=15)
    build = with_forwards(dict)
    return build(usage=usage, metrics=metrics)


def counted(forwards: int, **others: float) -> PerRequestMetrics:
    metrics = PerRequestMetrics(**others)
    metrics.speculative_decoding = Forwards(forwards, 0)  # type: ignore[assignment]
    return metrics


def test_forwards_are_those_of_our_scheduler() -> None:
    """An `nfe` of another model's speculative decoding would be a lie."""
    count = ForwardCount()
    count.observe(1, 1)
    count.observe(1, 1)
    count.note_busy()
    assert forwards_of(result(count)) == Forwards(2, 1)
    assert forwards_of(result(RequestSpecDecodeMetrics.new(4))) is None
    assert forwards_of(None) is None


@pytest.mark.parametrize(
    ("tokens", "forwards", "ratio"),
    [(12, 4, 3.0), (7, 3, 2.333), (0, 2, 0), (1, 0, None)],
)
def test_they_move_into_the_usage(tokens: int, forwards: int, ratio: float) -> None:
    """In `metrics` they would be called speculative decoding."""
    got = answer(counted(forwards), tokens)
    assert got["usage"].nfe == forwards
    assert got["usage"].tokens_per_forward == ratio
    assert got["metrics"] is None


def test_other_metrics_of_a_request_stay() -> None:
    """They were asked for at the start of the server."""
    got = answer(counted(4, queue_time_ms=1.5))
    assert got["metrics"].queue_time_ms == 1.5
    assert got["metrics"].speculative_decoding is None


def test_other_models_answers_stay_as_they_are() -> None:
    """Speculative decoding has a report of its own."""
    own = SpeculativeDecodingMetrics(
        mean_acceptance_length=2.0,
        draft_acceptance_rate=0.5,
        acceptance_histogram=[1, 1],
        num_spec_steps=2,
        num_accepted_draft_tokens=1,
        num_draft_tokens=2,
        num_spec_tokens=1,
    )
    metrics = PerRequestMetrics(speculative_decoding=own)
    got = answer(metrics)
    assert got["metrics"] is metrics and metrics.speculative_decoding is own
    assert "nfe" not in got["usage"].model_dump()
    assert "nfe" not in answer(None)["usage"].model_dump()
