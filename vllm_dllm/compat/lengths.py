"""Patches that refuse a request which no forward could hold.

With full attention a request is forwarded whole or not at all, and vLLM compares its
length with `max_model_len` alone: the engine would wait for ever. Every way into the
engine passes `process_inputs`; in a stream, that is too late for status 400, so the
handlers of the OpenAI routes compare before they answer (`lift_request_fields`). They
ask for the limit of new tokens first, which is when the length of the prompt is known,
and make the sampling parameters of the same prompt next, without a wait in between.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from vllm_dllm.compat.patch import refusing, wraps
from vllm_dllm.models.registry import is_ours

_prompt_len: ContextVar[int | None] = ContextVar("prompt_len", default=None)
"""Of the prompt whose sampling parameters this task makes next."""


def take_prompt_len() -> int | None:
    """The length of the prompt in hand, once; None where no handler asked for it."""
    length = _prompt_len.get()
    _prompt_len.set(None)
    return length


@wraps(
    "vllm.entrypoints.openai.chat_completion.serving:get_max_tokens",
    "vllm.entrypoints.openai.completion.serving:get_max_tokens",
)
def remember_prompt_lengths(function: Callable[..., int]) -> Callable[..., int]:
    """Keep the length of a prompt until its sampling parameters are made.

    Removable when a model can say what a request may hold.
    """

    def get_max_tokens(
        max_model_len: int,
        max_tokens: int | None,
        input_length: int,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        _prompt_len.set(input_length)
        return function(max_model_len, max_tokens, input_length, *args, **kwargs)

    return get_max_tokens


@wraps("vllm.v1.engine.input_processor:InputProcessor.process_inputs")
def check_request_lengths(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compare with what a forward holds, before a request reaches the engine.

    Removable when a model can say what a request may hold.
    """
    from vllm.sampling_params import SamplingParams

    from vllm_dllm.admission import check_length, check_session
    from vllm_dllm.config import DllmConfig

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = function(self, *args, **kwargs)
        params = request.sampling_params
        if is_ours(self.model_config) and isinstance(params, SamplingParams):
            config = DllmConfig.of(self.model_config)
            with refusing():
                check_session(request.resumable)
                check_length(params, config, len(request.prompt_token_ids))
        return request

    return process_inputs
