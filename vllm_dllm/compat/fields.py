"""Patches that read what a body asks of the decoding."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.defaults import our_defaults
from vllm_dllm.compat.lengths import take_prompt_len
from vllm_dllm.compat.patch import refusing, wraps

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

_CHAT = "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest"
_COMPLETION = "vllm.entrypoints.openai.completion.protocol:CompletionRequest"
_RESPONSES = "vllm.entrypoints.openai.responses.protocol:ResponsesRequest"

EARLY_CHECKS = (
    "_validate_logprobs",
    "_validate_stop_token_ids",
    "_validate_logit_bias",
    "_validate_allowed_token_ids",
    "_validate_diffusion",
)
"""Of vLLM, which makes them when a stream has begun."""


@wraps(
    *(f"{request}.to_sampling_params" for request in (_CHAT, _COMPLETION, _RESPONSES)),
    uses=[
        "vllm.tokenizers.registry:cached_tokenizer_from_config",
        *(f"vllm.sampling_params:SamplingParams.{check}" for check in EARLY_CHECKS),
    ],
)
def lift_request_fields(
    function: Callable[..., "SamplingParams"],
) -> Callable[..., "SamplingParams"]:
    """Obey decoding parameters at the top level of a request's body.

    vLLM accepts any field there and ignores the ones it does not know: a client of
    another diffusion server would get our defaults without a word. Errors are raised
    here, before a response starts, because in a stream it is too late for status 400.
    Removable when vLLM offers a hook for the fields it does not know.
    """
    from vllm.tokenizers.registry import cached_tokenizer_from_config

    from vllm_dllm.admission import check_length
    from vllm_dllm.config import DllmConfig
    from vllm_dllm.serving.lift import lift
    from vllm_dllm.serving.streams import DRAFTS, mode_of

    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = function(self, *args, **kwargs)
        prompt_len = take_prompt_len()
        defaults = our_defaults((*args, *kwargs.values()))
        if defaults is None:
            return params
        config = DllmConfig.of(defaults.model_config)
        if getattr(self, "echo", False) and params.prompt_logprobs == 0:
            # vLLM's way to have the prompt in an answer; nobody asked for logprobs.
            params.prompt_logprobs = None
        body = dict(self.model_extra or {})
        effort = getattr(self, "reasoning_effort", None)
        effort = getattr(getattr(self, "reasoning", None), "effort", effort)
        if effort is not None:
            body["reasoning_effort"] = effort
        suffix = getattr(self, "suffix", body.get("suffix"))
        if isinstance(suffix, str):
            tokenizer = cached_tokenizer_from_config(defaults.model_config)
            body["suffix"] = tokenizer.encode(suffix, add_special_tokens=False)
        with refusing():
            fields = lift(body, config, params.extra_args)
            if mode_of(self) == "denoise":
                fields[DRAFTS] = True
            # A new dict, because theirs is the request's own `vllm_xargs`.
            params.extra_args = {**(params.extra_args or {}), **fields} or None
            for check in EARLY_CHECKS:
                getattr(params, check)(defaults.model_config)
            if prompt_len is not None:
                check_length(params, config, prompt_len)
        return params

    return to_sampling_params


@wraps(*(f"{request}.to_beam_search_params" for request in (_CHAT, _COMPLETION)))
def refuse_beam_search(function: Callable[..., Any]) -> Callable[..., Any]:
    """Say that our models have no beams, before a stream starts.

    Removable when a model class can say so.
    """
    from vllm.exceptions import VLLMValidationError

    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if our_defaults((*args, *kwargs.values())) is not None:
            raise VLLMValidationError(
                "use_beam_search=True is not supported: a block is not decoded "
                "token by token",
                parameter="use_beam_search",
            )
        return function(self, *args, **kwargs)

    return to_beam_search_params
