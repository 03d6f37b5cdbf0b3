"""Patches that keep tokens which a model does not have away from its embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

from vllm_dllm.compat.patch import refusing, wrap_once
from vllm_dllm.models.registry import is_ours


def refuse_unknown_tokens() -> None:
    """Refuse prompts with a token that the model has no embedding of.

    A tokenizer may know tokens that were added after training. vLLM lets them pass,
    because those of some models stand for images; in a text model the look-up fails and
    takes the engine along. Every way into the engine passes `validate_token_ids`; in a
    stream that is too late for status 400, so the routes' handlers, which ask for the
    length of a prompt before they answer, ask there too. Removable when vLLM compares
    the ids of text models with the model's own vocabulary.
    """
    from vllm.entrypoints.serve.engine.serving import BaseServing
    from vllm.renderers.base import BaseRenderer

    from vllm_dllm.admission import check_prompt
    from vllm_dllm.config import DllmConfig

    def early(function: Callable[..., int]) -> Callable[..., int]:
        def _extract_prompt_len(self: BaseServing, prompt: Any) -> int:
            if is_ours(self.model_config):
                with refusing():
                    config = DllmConfig.of(self.model_config)
                    check_prompt(prompt.get("prompt_token_ids") or [], config)
            return function(self, prompt)

        return _extract_prompt_len

    def late(function: Callable[..., None]) -> Callable[..., None]:
        def validate_token_ids(
            self: BaseRenderer[Any], token_ids: Sequence[int], **kwargs: Any
        ) -> None:
            function(self, token_ids, **kwargs)
            if is_ours(self.model_config):
                with refusing():
                    check_prompt(token_ids, DllmConfig.of(self.model_config))

        return validate_token_ids

    wrap_once(BaseServing, "_extract_prompt_len", early)
    wrap_once(BaseRenderer, "validate_token_ids", late)
