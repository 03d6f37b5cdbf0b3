"""`nfe` and `tokens_per_forward` in the usage of the OpenAI routes."""

from collections.abc import Callable
from typing import Any, NamedTuple

from vllm.entrypoints.serve.engine.protocol import UsageInfo
from vllm.outputs import RequestOutput

from vllm_dllm.report import ForwardCount


class Forwards(NamedTuple):
    """Denoising forwards of an answer."""

    all: int
    busy: int
    """Of these, with the threshold of a busy server."""


def forwards_of(result: RequestOutput | None) -> Forwards | None:
    """Those of an answer of one of our models, else None."""
    if result is None or not result.outputs:
        return None
    metrics = result.outputs[0].spec_decode_metrics
    count = ForwardCount.read(metrics)
    if count is None or metrics is None:
        return None
    return Forwards(count, ForwardCount.read_busy(metrics))


def add_forwards(usage: UsageInfo, forwards: Forwards) -> None:
    """Tell a client what its answer cost."""
    usage.nfe = forwards.all
    tokens = usage.completion_tokens or 0
    ratio = round(tokens / forwards.all, 3) if forwards.all else None
    usage.tokens_per_forward = ratio
    if forwards.busy:
        usage.nfe_busy = forwards.busy


def unchecked(metrics: Any) -> Callable[..., Any]:
    """A class of metrics that takes forwards where a count of drafts belongs."""

    def build(**fields: Any) -> Any:
        if isinstance(fields.get("speculative_decoding"), Forwards):
            return metrics.model_construct(**fields)
        return metrics(**fields)

    return build


def with_forwards(response: Callable[..., Any]) -> Callable[..., Any]:
    """A response class that moves the forwards from `metrics` to `usage`."""

    def build(*args: Any, **fields: Any) -> Any:
        metrics: Any = fields.get("metrics")
        count = getattr(metrics, "speculative_decoding", None)
        if isinstance(count, Forwards):
            metrics.speculative_decoding = None
            if not metrics.model_dump(exclude_none=True):
                fields["metrics"] = None
            if fields.get("usage") is not None:
                add_forwards(fields["usage"], count)
        return response(*args, **fields)

    return build
