"""Patches of vLLM's checks: what it refuses for a diffusion model, and ours can do."""

import copy
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import refusing, wraps
from vllm_dllm.models.registry import is_ours
from vllm_dllm.quoting import quoted

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

Results = AsyncGenerator[Any, None]
NO_CALLS = (
    "; {!r} reads no structural tag with a format, which vLLM makes of tools that are "
    "required or strict: a server with 'xgrammar' does"
)


@wraps("vllm.sampling_params:SamplingParams._validate_diffusion")
def replace_request_validation(function: Callable[..., None]) -> Callable[..., None]:
    """Check requests to our models by our rules.

    vLLM's validator for diffusion models rejects every sampling parameter, among them
    temperature 0, because the one model it was written for ignores them. Removable when
    a model class can bring its own validation.
    """
    from vllm_dllm.admission import check_sampling_params
    from vllm_dllm.config import DllmConfig

    def validate(self: "SamplingParams", model_config: "ModelConfig") -> None:
        if not is_ours(model_config):
            return function(self, model_config)
        with refusing():
            check_sampling_params(self, DllmConfig.of(model_config))

    return validate


@wraps("vllm.sampling_params:SamplingParams._validate_structured_outputs")
def allow_structured_outputs(function: Callable[..., None]) -> Callable[..., None]:
    """Let requests to our models bring a grammar; vLLM still checks what it says.

    vLLM refuses one for every diffusion model, since a grammar needs its tokens in
    order. Ours are then decoded in order (request.py). And its messages are those of
    the library that reads the grammar: here they name the field. Removable when a model
    class can say that it can, and when messages say what they are about.
    """
    from vllm.exceptions import VLLMValidationError

    def validate(
        self: "SamplingParams", model_config: "ModelConfig", *args: Any
    ) -> None:
        grammar = self.structured_outputs
        if grammar is None or not is_ours(model_config):
            return function(self, model_config, *args)
        is_tag = grammar.structural_tag is not None
        model_config = copy.copy(model_config)
        vars(model_config)["is_diffusion"] = False  # a cached property
        try:
            function(self, model_config, *args)
            if is_tag and grammar._backend in ("outlines", "lm-format-enforcer"):
                # vLLM 0.32 finds out in the engine.
                raise VLLMValidationError("structural_tag is not supported")
        except VLLMValidationError as error:
            given = {
                name: value
                for name, value in vars(grammar).items()
                if value and not name.startswith("_")
            }
            backend = grammar._backend
            calls = is_tag and backend not in ("xgrammar", "auto")
            raise VLLMValidationError(
                f"structured_outputs={quoted(given)} cannot be followed: {error}"
                + (NO_CALLS.format(backend) if calls else ""),
                parameter="structured_outputs",
            ) from None
        if broken := broken_backend(grammar._backend):
            raise VLLMValidationError(
                f"structured_outputs cannot be followed by {grammar._backend!r}, the "
                f"server's grammar backend: {broken}; a server can have 'xgrammar', "
                "'guidance' or 'outlines'",
                parameter="structured_outputs",
            )

    return validate


@wraps("vllm.v1.engine.async_llm:AsyncLLM.generate")
def explain_dead_ends(function: Callable[..., Results]) -> Callable[..., Results]:
    """Refuse a request of ours whose grammar turned out to allow nothing.

    vLLM calls it an internal error of the server. Removable when it says which request
    asked for what cannot be written.
    """
    from vllm.exceptions import VLLMValidationError

    from vllm_dllm.report import DEAD_END

    async def explained(results: Results) -> Results:
        async with aclosing(results):
            async for result in results:
                if any(choice.stop_reason == DEAD_END for choice in result.outputs):
                    raise VLLMValidationError(DEAD_END, parameter="structured_outputs")
                yield result

    def generate(self: "AsyncLLM", *args: Any, **kwargs: Any) -> Results:
        results = function(self, *args, **kwargs)
        return explained(results) if is_ours(self.model_config) else results

    return generate


def broken_backend(name: str | None) -> str | None:
    """Why a grammar backend cannot be loaded, which vLLM finds out in the engine; None
    if it can.

    lm-format-enforcer looks for vLLM's tokenizers where they no longer are.
    """
    if name != "lm-format-enforcer":
        return None
    try:
        import_module("lmformatenforcer.integrations.vllm")
    except ImportError as error:
        return str(error.__context__ or error)
    return None


@wraps("vllm.renderers.base:BaseRenderer.render_completion_suffix")
def allow_suffixes(
    function: Callable[..., str | None],
) -> Callable[..., str | None]:
    """Let completions of our models have a `suffix`.

    vLLM makes one prompt of prompt and suffix, for models that know such a prompt, and
    refuses it for all others. Ours keep the prompt; the suffix goes behind the canvas
    (`lift_request_fields`). Removable when a model can say where it wants its suffix.
    """

    def render_completion_suffix(self: Any, prompt: str, suffix: str) -> str | None:
        if is_ours(self.model_config):
            return prompt
        return function(self, prompt, suffix)

    return render_completion_suffix
