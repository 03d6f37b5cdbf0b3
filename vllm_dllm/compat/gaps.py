"""A patch that lets prompts have gaps."""

from collections.abc import Awaitable, Callable
from typing import Any

from vllm_dllm.compat.patch import refusing, wraps
from vllm_dllm.models.registry import is_ours

_COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion"


@wraps(f"{_COMPLETION}.create_completion")
def fill_gaps(
    function: Callable[..., Awaitable[Any]],
) -> Callable[..., Awaitable[Any]]:
    """Answer prompts with gaps, of which vLLM knows none (serving/gaps.py).

    Removable when a model can say what a prompt of it may be.
    """
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

    from vllm_dllm.config import DllmConfig
    from vllm_dllm.serving.gap_answers import take_apart
    from vllm_dllm.serving.gaps import as_completion, drop_fields, read

    async def create_completion(self: Any, request: Any, *args: Any, **kw: Any) -> Any:
        if not is_ours(self.model_config):
            return await function(self, request, *args, **kw)
        tokenizer = self.renderer.tokenizer
        with refusing():
            cloze = read(request, DllmConfig.of(self.model_config), tokenizer)
        if cloze is None:
            drop_fields(request)
            return await function(self, request, *args, **kw)
        inner = as_completion(request, cloze)
        answer = await function(self, inner, *args, **kw)
        if not isinstance(answer, ErrorResponse):
            take_apart(answer, request, cloze, tokenizer)
        return answer

    return create_completion
