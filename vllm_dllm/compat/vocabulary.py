"""Patches that keep tokens which a model does not have away from its embeddings.

A tokenizer may know tokens that were added after training. vLLM lets them pass, because
those of some models stand for images; in a text model the look-up fails and takes the
engine along. Removable when vLLM compares the ids of text models with the model's own
vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vllm_dllm.compat.patch import refusing, wraps
from vllm_dllm.models.registry import is_ours


@wraps("vllm.renderers.base:BaseRenderer.validate_token_ids")
def refuse_unknown_tokens(function: Callable[..., None]) -> Callable[..., None]:
    """Refuse prompts with a token that the model has no embedding of.

    Every way into the engine passes here.
    """
    from vllm_dllm.admission import check_prompt
    from vllm_dllm.config import DllmConfig

    def validate_token_ids(self: Any, token_ids: Sequence[int], **kwargs: Any) -> None:
        function(self, token_ids, **kwargs)
        if is_ours(self.model_config):
            with refusing():
                check_prompt(token_ids, DllmConfig.of(self.model_config))

    return validate_token_ids


@wraps("vllm.entrypoints.serve.engine.serving:BaseServing._extract_prompt_len")
def refuse_unknown_tokens_early(function: Callable[..., int]) -> Callable[..., int]:
    """Refuse them before a stream begins, when it is not too late for status 400.

    The routes' handlers ask for the length of a prompt before they answer.
    """
    from vllm_dllm.admission import check_prompt
    from vllm_dllm.config import DllmConfig

    def _extract_prompt_len(self: Any, prompt: Any) -> int:
        if is_ours(self.model_config):
            with refusing():
                config = DllmConfig.of(self.model_config)
                check_prompt(prompt.get("prompt_token_ids") or [], config)
        return function(self, prompt)

    return _extract_prompt_len
