"""`vllm_dllm:*`: fed by steps of our models alone."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from tests.test_report import STEP
from vllm_dllm.serving import metrics
from vllm_dllm.serving.metrics import StatLogger


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Metrics of one test are not those of another."""
    metrics.metrics.cache_clear()
    yield
    if metrics.metrics.cache_info().currsize:
        for metric in vars(metrics.metrics()).values():
            REGISTRY.unregister(metric)
    metrics.metrics.cache_clear()


def logger(architecture: str = "LLaDA2MoeModelLM", engine: int = 0) -> StatLogger:
    config: Any = SimpleNamespace(
        model_config=SimpleNamespace(
            architectures=[architecture], served_model_name="tiny"
        )
    )
    return StatLogger(config, engine)


def step_stats() -> SchedulerStats:
    stats = SpecDecodingStats(num_spec_tokens=32)
    STEP.pack(stats)
    return SchedulerStats(spec_decoding_stats=stats)


def value(name: str, engine: str = "0") -> float | None:
    labels = {"model_name": "tiny", "engine": engine}
    return REGISTRY.get_sample_value(f"vllm_dllm:{name}", labels)


def test_a_step_is_counted() -> None:
    """A metric that stays at zero looks like a server that does nothing."""
    logger().record(step_stats(), None)
    assert value("step_seconds_sum") == STEP.seconds
    assert value("step_requests_sum") == STEP.requests
    assert value("canvas_occupancy_sum") == STEP.canvas / STEP.positions
    assert value("committed_tokens_total") == STEP.committed
    assert value("revised_tokens_total") == STEP.revised
    assert value("busy_steps_total") == STEP.busy
    assert value("request_forwards_count") == len(STEP.finished)
    assert value("request_forwards_sum") == 5
    assert value("tokens_per_forward_sum") == 30 / 4 + 9


def test_engines_are_told_apart_and_share_the_metrics() -> None:
    """Prometheus refuses a second metric of the same name."""
    for engine in (0, 1, 1):
        logger(engine=engine).record(step_stats(), None)
    assert value("step_seconds_count", "0") == 1
    assert value("step_seconds_count", "1") == 2


@pytest.mark.parametrize(
    "stats",
    [
        None,
        SchedulerStats(),
        SchedulerStats(spec_decoding_stats=SpecDecodingStats.new(5)),
    ],
)
def test_a_step_without_our_stats_is_none(stats: SchedulerStats | None) -> None:
    """A prefill, or an engine without statistics, must not end the logger."""
    logger().record(stats, None)
    assert value("step_seconds_count") is None


def test_other_models_get_no_metrics() -> None:
    """The plugin is loaded for every model of the machine."""
    logger("LlamaForCausalLM").record(step_stats(), None)
    assert metrics.metrics.cache_info().currsize == 0
