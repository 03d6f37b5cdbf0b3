"""Patches that put a request's denoising forwards into the usage of its answer.

They arrive where vLLM keeps a request's speculative decoding, which it reports as such.
Removable when vLLM reports the denoising steps of diffusion models.
"""

from collections.abc import Callable
from typing import Any

from vllm_dllm.compat.patch import wraps

_CHAT = "vllm.entrypoints.openai.chat_completion.serving"
_COMPLETION = "vllm.entrypoints.openai.completion.serving"
_TOKENS = "vllm.entrypoints.scale_out.token_in_token_out.serving"


@wraps(
    f"{_CHAT}:build_spec_decoding_metrics",
    f"{_COMPLETION}:build_spec_decoding_metrics",
    f"{_TOKENS}:build_spec_decoding_metrics",
)
def report_forwards(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hand on the forwards that our scheduler sent, as they are."""
    from vllm_dllm.serving.usage import forwards_of

    def build_spec_decoding_metrics(result: Any) -> Any:
        forwards = forwards_of(result)
        return function(result) if forwards is None else forwards

    return build_spec_decoding_metrics


@wraps(f"{_TOKENS}:PerRequestMetrics")
def carry_forwards(metrics: Callable[..., Any]) -> Callable[..., Any]:
    """Let the metrics of a route that checks them hold the forwards for a moment."""
    from vllm_dllm.serving.usage import unchecked

    return unchecked(metrics)


@wraps(
    f"{_CHAT}:ChatCompletionResponse",
    f"{_CHAT}:ChatCompletionStreamResponse",
    f"{_COMPLETION}:CompletionResponse",
    f"{_COMPLETION}:CompletionStreamResponse",
    f"{_TOKENS}:GenerateTokensResponse",
    f"{_TOKENS}:GenerateTextResponse",
    f"{_TOKENS}:GenerateTokensStreamResponse",
    f"{_TOKENS}:GenerateTextStreamResponse",
)
def move_forwards(response: Callable[..., Any]) -> Callable[..., Any]:
    """Move them from the metrics of an answer to its usage."""
    from vllm_dllm.serving.usage import with_forwards

    return with_forwards(response)
