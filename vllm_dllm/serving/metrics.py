"""`vllm_dllm:*` at /metrics, next to vLLM's own.

Loaded through `vllm.stat_logger_plugins`, in the API process. For other models it
measures nothing and adds nothing.
"""

from functools import cache

from prometheus_client import Counter, Histogram
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import (
    IterationStats,
    MultiModalCacheStats,
    SchedulerStats,
)

from vllm_dllm.models.registry import is_ours
from vllm_dllm.report import StepStats

LABELS = ("model_name", "engine")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
POWERS = tuple(2**n for n in range(13))
TOKENS_PER_FORWARD = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SHARES = tuple(n / 10 for n in range(1, 11))


class Metrics:
    """The metrics themselves, once in a process."""

    def __init__(self) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm_dllm:{name}", text, LABELS, buckets=buckets)

        self.step_seconds = histogram(
            "step_seconds", "Time of a denoising step, from plan to result.", SECONDS
        )
        self.step_requests = histogram(
            "step_requests", "Requests that took a denoising step together.", POWERS
        )
        self.canvas_occupancy = histogram(
            "canvas_occupancy",
            "Positions of blocks under denoising, of all positions of a step.",
            SHARES,
        )
        self.request_forwards = histogram(
            "request_forwards", "Denoising forwards of a finished request.", POWERS
        )
        self.tokens_per_forward = histogram(
            "tokens_per_forward",
            "Tokens of a finished request by its forwards.",
            TOKENS_PER_FORWARD,
        )
        self.committed_tokens = Counter(
            "vllm_dllm:committed_tokens",
            "Tokens handed out.",
            LABELS,
        )
        self.revised_tokens = Counter(
            "vllm_dllm:revised_tokens", "Decoded tokens that were replaced.", LABELS
        )
        self.busy_steps = Counter(
            "vllm_dllm:busy_steps",
            "Denoising steps of requests with the threshold of a busy server.",
            LABELS,
        )


@cache
def metrics() -> Metrics:
    """Prometheus refuses a second metric of the same name."""
    return Metrics()


class StatLogger(StatLoggerBase):
    """Feeds the metrics from the steps of one engine."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self.ours = is_ours(vllm_config.model_config)
        self.labels = (vllm_config.model_config.served_model_name, str(engine_index))

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        if not self.ours or scheduler_stats is None:
            return
        packed = scheduler_stats.spec_decoding_stats
        step = None if packed is None else StepStats.unpack(packed)
        if step is None:
            return
        own, labels = metrics(), self.labels
        own.step_seconds.labels(*labels).observe(step.seconds)
        own.step_requests.labels(*labels).observe(step.requests)
        own.canvas_occupancy.labels(*labels).observe(step.canvas / step.positions)
        own.committed_tokens.labels(*labels).inc(step.committed)
        own.revised_tokens.labels(*labels).inc(step.revised)
        own.busy_steps.labels(*labels).inc(step.busy)
        for forwards, tokens in step.finished:
            own.request_forwards.labels(*labels).observe(forwards)
            if forwards:
                own.tokens_per_forward.labels(*labels).observe(tokens / forwards)

    def log_engine_initialized(self) -> None:
        pass
