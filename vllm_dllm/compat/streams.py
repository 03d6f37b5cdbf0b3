"""Patches of the streams of the OpenAI routes: drafts, and when tokens were decided.

vLLM's chunks have room for neither. Removable when they carry what a plugin's results
have, and when a stream may have a chunk for a result without a token.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from vllm_dllm.compat.patch import wraps
from vllm_dllm.models.registry import is_ours

Generator = Callable[..., AsyncGenerator[str, None]]
_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat"
_COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion"


@wraps(f"{_CHAT}.chat_completion_stream_generator")
def add_to_chats(function: Generator) -> Generator:
    """Show a chat's drafts in chunks of their own, and its steps in the last chunk."""
    from vllm_dllm.serving.streams import chat_draft, wants_more, with_more

    def chat_completion_stream_generator(
        self: Any,
        request: Any,
        results: Any,
        request_id: str,
        model: str,
        *rest: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        def chunks_of(found: Any) -> AsyncGenerator[str, None]:
            return function(self, request, found, request_id, model, *rest, **kwargs)

        if not (is_ours(self.model_config) and wants_more(request)):
            return chunks_of(results)
        tokenizer = self.renderer.tokenizer
        draft_chunk = chat_draft(request, request_id, model, tokenizer)
        return with_more(chunks_of, results, draft_chunk, request.n or 1)

    return chat_completion_stream_generator


@wraps(f"{_COMPLETION}.completion_stream_generator")
def add_to_completions(function: Generator) -> Generator:
    """The same of a completion."""
    from vllm_dllm.serving.streams import completion_draft, wants_more, with_more

    def completion_stream_generator(
        self: Any,
        request: Any,
        inputs: Any,
        results: Any,
        request_id: str,
        created: int,
        model: str,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        def chunks_of(found: Any) -> AsyncGenerator[str, None]:
            return function(
                self, request, inputs, found, request_id, created, model, **kwargs
            )

        if not (is_ours(self.model_config) and wants_more(request)):
            return chunks_of(results)
        tokenizer = self.renderer.tokenizer
        draft_chunk = completion_draft(request, request_id, created, model, tokenizer)
        return with_more(chunks_of, results, draft_chunk, request.n or 1)

    return completion_stream_generator
