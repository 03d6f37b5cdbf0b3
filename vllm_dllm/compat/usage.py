"""Patches that put a request's denoising forwards into the usage of its answer.

They arrive where vLLM keeps a request's speculative decoding, which it reports as such.
Removable when vLLM reports the denoising steps of diffusion models.
"""

from collections.abc import Callable
from typing import Any

from vllm_dllm.compat.patch import wraps

_CHAT = "vllm.entrypoints.openai.chat_completion.serving"
_COMPLETION = "vllm.entrypoints.openai.completion.serving"


@wraps(
    f"{_CHAT}:build_spec_decoding_metrics", f"{_COMPLETION}:build_spec_decoding_metrics"
)
def report_forwards(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hand on the forwards that our scheduler sent, as they are."""
    from vllm_dllm.serving.usage import forwards_of

    def build_spec_decoding_metrics(result: Any) -> Any:
        forwards = forwards_of(result)
        return function(result) if forwards is None else forwards

    return build_spec_decoding_metrics


@wraps(
    f"{_CHAT}:ChatCompletionResponse",
    f"{_CHAT}:ChatCompletionStreamResponse",
    f"{_COMPLETION}:CompletionResponse",
    f"{_COMPLETION}:CompletionStreamResponse",
)
def move_forwards(response: Callable[..., Any]) -> Callable[..., Any]:
    """Move them from the metrics of an answer to its usage."""
    from vllm_dllm.serving.usage import with_forwards

    return with_forwards(response)
