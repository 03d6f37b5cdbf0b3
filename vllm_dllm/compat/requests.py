"""Patches on the way of a request: its checks, its fields, the usage of its answer."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import refusing, wrap_once
from vllm_dllm.models.registry import is_ours

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.sampling_params import SamplingParams


def replace_request_validation() -> None:
    """Check requests to our models by our rules.

    vLLM's validator for diffusion models rejects every sampling parameter, among them
    temperature 0, because the one model it was written for ignores them. Removable when
    a model class can bring its own validation.
    """
    from vllm.sampling_params import SamplingParams

    from vllm_dllm.admission import check_sampling_params
    from vllm_dllm.config import DllmConfig

    def wrapper(function: Callable[..., None]) -> Callable[..., None]:
        def validate(self: "SamplingParams", model_config: "ModelConfig") -> None:
            if not is_ours(model_config):
                return function(self, model_config)
            with refusing():
                check_sampling_params(self, DllmConfig.of(model_config))

        return validate

    wrap_once(SamplingParams, "_validate_diffusion", wrapper)


def allow_structured_outputs() -> None:
    """Let requests to our models bring a grammar; vLLM still checks what it says.

    vLLM refuses one for every diffusion model, since a grammar needs its tokens in
    order. Ours are then decoded in order (request.py). Removable when a model class can
    say that it can.
    """
    from vllm.sampling_params import SamplingParams

    def wrapper(function: Callable[..., None]) -> Callable[..., None]:
        def validate(
            self: "SamplingParams", model_config: "ModelConfig", *args: Any
        ) -> None:
            if self.structured_outputs is not None and is_ours(model_config):
                model_config = copy.copy(model_config)
                vars(model_config)["is_diffusion"] = False  # a cached property
            return function(self, model_config, *args)

        return validate

    wrap_once(SamplingParams, "_validate_structured_outputs", wrapper)


def allow_suffixes() -> None:
    """Let completions of our models have a `suffix`.

    vLLM makes one prompt of prompt and suffix, for models that know such a prompt, and
    refuses it for all others. Ours keep the prompt; the suffix goes behind the canvas
    (`lift_request_fields`). Removable when a model can say where it wants its suffix.
    """
    from vllm.renderers.base import BaseRenderer

    def wrapper(function: Callable[..., str | None]) -> Callable[..., str | None]:
        def render_completion_suffix(
            self: BaseRenderer[Any], prompt: str, suffix: str
        ) -> str | None:
            if is_ours(self.model_config):
                return prompt
            return function(self, prompt, suffix)

        return render_completion_suffix

    wrap_once(BaseRenderer, "render_completion_suffix", wrapper)


EARLY_CHECKS = (
    "_validate_logprobs",
    "_validate_stop_token_ids",
    "_validate_logit_bias",
    "_validate_allowed_token_ids",
    "_validate_diffusion",
)
"""Of vLLM, which makes them when a stream has begun."""


class OurDefaults(dict[str, Any]):
    """Default sampling parameters that belong to one of our models."""

    model_config: "ModelConfig"


class TokenLimit(int):
    """A limit of new tokens that remembers the prompt it was computed for."""

    prompt_len: int


def check_request_lengths() -> None:
    """Refuse a request that no forward could hold, before it reaches the engine.

    With full attention a request is forwarded whole or not at all, and vLLM compares
    its length with `max_model_len` alone: the engine would wait for ever. Every way
    into the engine passes `process_inputs`; in a stream, that is too late for status
    400, so for the OpenAI routes the limit of new tokens carries the length of its
    prompt to `lift_request_fields`. Removable when a model can say what a request may
    hold.
    """
    from vllm.entrypoints.openai.chat_completion import serving as chat
    from vllm.entrypoints.openai.completion import serving as completion
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    from vllm_dllm.admission import check_length
    from vllm_dllm.config import DllmConfig

    def remember(function: Callable[..., int]) -> Callable[..., int]:
        def get_max_tokens(
            max_model_len: int,
            max_tokens: int | None,
            input_length: int,
            default_sampling_params: dict[str, Any],
            *args: Any,
            **kwargs: Any,
        ) -> int:
            defaults = default_sampling_params
            limit = function(
                max_model_len, max_tokens, input_length, defaults, *args, **kwargs
            )
            if not isinstance(defaults, OurDefaults):
                return limit
            limit = TokenLimit(limit)
            limit.prompt_len = input_length
            return limit

        return get_max_tokens

    def check(function: Callable[..., Any]) -> Callable[..., Any]:
        def process_inputs(self: InputProcessor, *args: Any, **kwargs: Any) -> Any:
            request = function(self, *args, **kwargs)
            params = request.sampling_params
            if is_ours(self.model_config) and isinstance(params, SamplingParams):
                config = DllmConfig.of(self.model_config)
                with refusing():
                    check_length(params, config, len(request.prompt_token_ids))
            return request

        return process_inputs

    wrap_once(chat, "get_max_tokens", remember)
    wrap_once(completion, "get_max_tokens", remember)
    wrap_once(InputProcessor, "process_inputs", check)


def lift_request_fields() -> None:
    """Obey decoding parameters at the top level of a request's body.

    vLLM accepts any field there and ignores the ones it does not know: a client of
    another diffusion server would get our defaults without a word. A request knows
    nothing of its model, so the default sampling parameters, which each handler gets
    from its model and passes along, carry it; other models keep a plain dict and vLLM's
    behaviour. Errors are raised here, before a response starts, because in a stream it
    is too late for status 400. `wrap_once` makes a second call harmless. Removable when
    vLLM offers a hook for the fields it does not know.
    """
    from vllm.config import ModelConfig
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.exceptions import VLLMValidationError
    from vllm.tokenizers.registry import cached_tokenizer_from_config

    from vllm_dllm.admission import check_length
    from vllm_dllm.config import DllmConfig
    from vllm_dllm.models.registry import FAMILIES
    from vllm_dllm.serving.lift import lift

    def mark(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def get_diff_sampling_param(self: "ModelConfig") -> dict[str, Any]:
            stated = function(self)
            if not is_ours(self):
                return stated
            # What the authors decode with, where the checkpoint does not say.
            [architecture, *_] = FAMILIES.keys() & set(self.architectures)
            defaults = OurDefaults(FAMILIES[architecture].generation)
            if self.generation_config not in ("auto", "vllm"):
                # vLLM would take a default of such a server for its limit.
                defaults.pop("max_tokens", None)
            defaults.update(stated)
            defaults.model_config = self
            return defaults

        return get_diff_sampling_param

    def refuse(function: Callable[..., Any]) -> Callable[..., Any]:
        def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
            if any(isinstance(a, OurDefaults) for a in (*args, *kwargs.values())):
                raise VLLMValidationError(
                    "use_beam_search=True is not supported: a block is not decoded "
                    "token by token",
                    parameter="use_beam_search",
                )
            return function(self, *args, **kwargs)

        return to_beam_search_params

    def wrapper(
        function: Callable[..., "SamplingParams"],
    ) -> Callable[..., "SamplingParams"]:
        def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
            params = function(self, *args, **kwargs)
            given = (*args, *kwargs.values())
            defaults = next((a for a in given if isinstance(a, OurDefaults)), None)
            if defaults is None:
                return params
            config = DllmConfig.of(defaults.model_config)
            limit = params.max_tokens
            if getattr(self, "echo", False) and params.prompt_logprobs == 0:
                # vLLM's way to have the prompt in an answer; nobody asked for logprobs.
                params.prompt_logprobs = None
            body = dict(self.model_extra or {})
            suffix = getattr(self, "suffix", body.get("suffix"))
            if isinstance(suffix, str):
                tokenizer = cached_tokenizer_from_config(defaults.model_config)
                body["suffix"] = tokenizer.encode(suffix, add_special_tokens=False)
            with refusing():
                fields = lift(body, config, params.extra_args)
                # A new dict, because theirs is the request's own `vllm_xargs`.
                params.extra_args = {**(params.extra_args or {}), **fields} or None
                for check in EARLY_CHECKS:
                    getattr(params, check)(defaults.model_config)
                if isinstance(limit, TokenLimit):
                    params.max_tokens = int(limit)
                    check_length(params, config, limit.prompt_len)
            return params

        return to_sampling_params

    wrap_once(ModelConfig, "get_diff_sampling_param", mark)
    for request in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        wrap_once(request, "to_sampling_params", wrapper)
    for request in (ChatCompletionRequest, CompletionRequest):
        wrap_once(request, "to_beam_search_params", refuse)


def report_forwards() -> None:
    """Put a request's denoising forwards into the usage of its answer.

    They arrive where vLLM keeps a request's speculative decoding, which it reports as
    such. Only what our scheduler sent is moved. Removable when vLLM reports the
    denoising steps of diffusion models.
    """
    from vllm.entrypoints.openai.chat_completion import serving as chat
    from vllm.entrypoints.openai.completion import serving as completion

    from vllm_dllm.serving.usage import forwards_of, with_forwards

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        def build_spec_decoding_metrics(result: Any) -> Any:
            forwards = forwards_of(result)
            return function(result) if forwards is None else forwards

        return build_spec_decoding_metrics

    for module, names in (
        (chat, ("ChatCompletionResponse", "ChatCompletionStreamResponse")),
        (completion, ("CompletionResponse", "CompletionStreamResponse")),
    ):
        wrap_once(module, "build_spec_decoding_metrics", wrapper)
        for name in names:
            wrap_once(module, name, with_forwards)
