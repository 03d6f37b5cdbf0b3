"""`nfe` and `tokens_per_forward` in the usage of the OpenAI routes."""

from collections.abc import Callable
from typing import Any

from vllm.entrypoints.serve.engine.protocol import UsageInfo
from vllm.outputs import RequestOutput

from vllm_dllm.report import ForwardCount


def forwards_of(result: RequestOutput | None) -> int | None:
    """Denoising forwards of an answer of one of our models, else None."""
    if result is None or not result.outputs:
        return None
    return ForwardCount.read(result.outputs[0].spec_decode_metrics)


def add_forwards(usage: UsageInfo, forwards: int) -> None:
    """Tell a client what its answer cost."""
    usage.nfe = forwards
    tokens = usage.completion_tokens or 0
    ratio = round(tokens / forwards, 3) if forwards else None
    usage.tokens_per_forward = ratio


def with_forwards(response: Callable[..., Any]) -> Callable[..., Any]:
    """A response class that moves the forwards from `metrics` to `usage`."""

    def build(*args: Any, **fields: Any) -> Any:
        metrics: Any = fields.get("metrics")
        count = getattr(metrics, "speculative_decoding", None)
        if isinstance(count, int):
            metrics.speculative_decoding = None
            if not metrics.model_dump(exclude_none=True):
                fields["metrics"] = None
            if fields.get("usage") is not None:
                add_forwards(fields["usage"], count)
        return response(*args, **fields)

    return build
