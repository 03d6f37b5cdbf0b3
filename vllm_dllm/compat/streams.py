"""Patches of the streams of the OpenAI routes: drafts, when tokens were decided, and
the end of an answer without any.

vLLM's chunks have room for neither. Removable when they carry what a plugin's results
have, and when a stream may have a chunk for a result without a token.
"""

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import wraps
from vllm_dllm.models.registry import is_ours

if TYPE_CHECKING:
    from vllm_dllm.serving.streams import Shape

Chunks = AsyncGenerator[str, None]
Generator = Callable[..., Chunks]
_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat"
_COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion"


@wraps(f"{_CHAT}.chat_completion_stream_generator")
def add_to_chats(function: Generator) -> Generator:
    """Show a chat's drafts in chunks of their own, and its steps in the last chunk."""
    from vllm_dllm.serving.streams import chat_shape

    def chat_completion_stream_generator(
        self: Any,
        request: Any,
        results: Any,
        request_id: str,
        model: str,
        *rest: Any,
        **kwargs: Any,
    ) -> Chunks:
        def chunks_of(found: Any) -> Chunks:
            return function(self, request, found, request_id, model, *rest, **kwargs)

        shape = chat_shape(request_id, model)
        return extended(self, request, chunks_of, results, shape)

    return chat_completion_stream_generator


@wraps(f"{_COMPLETION}.completion_stream_generator")
def add_to_completions(function: Generator) -> Generator:
    """The same of a completion."""
    from vllm_dllm.serving.streams import completion_shape

    def completion_stream_generator(
        self: Any,
        request: Any,
        inputs: Any,
        results: Any,
        request_id: str,
        created: int,
        model: str,
        **kwargs: Any,
    ) -> Chunks:
        def chunks_of(found: Any) -> Chunks:
            return function(
                self, request, inputs, found, request_id, created, model, **kwargs
            )

        shape = completion_shape(request_id, created, model)
        return extended(self, request, chunks_of, results, shape)

    return completion_stream_generator


def extended(
    handler: Any,
    request: Any,
    chunks_of: Callable[[Any], Chunks],
    results: Any,
    shape: "Shape",
) -> Chunks:
    """vLLM's chunks, and what is ours in a stream of our models."""
    from vllm_dllm.serving.empty_answers import with_ends
    from vllm_dllm.serving.streams import draft_chunks, wants_more, with_more

    if not is_ours(handler.model_config):
        return chunks_of(results)
    num_choices = request.n or 1

    def ended(found: Any) -> Chunks:
        return with_ends(chunks_of, found, shape, num_choices)

    if not wants_more(request):
        return ended(results)
    draft_chunk = draft_chunks(request, shape, handler.renderer.tokenizer)
    return with_more(ended, results, draft_chunk, num_choices)
