"""What streams of the OpenAI routes have besides vLLM's chunks: drafts, and traces.

A draft is a chunk of its own that adds no text, so that a client which knows nothing
of drafts reads the same answer. Traces stand in the chunk that ends an answer.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NamedTuple

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.tokenizers import TokenizerLike

from vllm_dllm.params import PREFIX
from vllm_dllm.quoting import quoted
from vllm_dllm.serving.drafts import render, token_texts

MODES = ("block_append", "denoise")
DRAFTS = f"{PREFIX}stream_drafts"
TRACES = ("dllm_trajectory", "step_maps", "dllm_rest")
"""What an answer may carry of its steps."""
ASKED = {f"{PREFIX}return_{name}" for name in ("trajectory", "step_maps", "rest")}
ASKED |= {"return_step_maps"}
"""Fields that ask for them."""
DraftChunk = Callable[[dict[str, Any]], str]
Results = AsyncIterator[Any]
"""`RequestOutput`s; of completions each with the number of its prompt."""
FINISHED = '"finish_reason":"'
"""In a chunk that ends an answer."""


class Shape(NamedTuple):
    """What our own chunks look like."""

    like: dict[str, Any]
    """What all chunks of the stream have."""
    nothing: dict[str, Any]
    """What a choice has that adds nothing to the answer."""


def mode_of(request: Any) -> str:
    """The `stream_mode` of a request.

    Raises:
        ValueError: for one that cannot be obeyed.
    """
    mode = (request.model_extra or {}).get("stream_mode")
    if mode is None:
        return MODES[0]
    if mode not in MODES:
        raise ValueError(
            f"stream_mode={quoted(mode)} is not known; allowed: {', '.join(MODES)}"
        )
    if mode == "denoise":
        why = why_no_drafts(request)
        if why is not None:
            raise ValueError(f"stream_mode='denoise' {why}")
    return str(mode)


def why_no_drafts(request: Any) -> str | None:
    """Why a request can be shown none; None if it can."""
    if hasattr(request, "input"):
        return "is not possible in /v1/responses; /v1/chat/completions has it"
    if not request.stream:
        return "needs stream=true"
    prompt: Any = getattr(request, "prompt", None)
    several = isinstance(prompt, list) and len(prompt) > 1
    if several and not isinstance(prompt[0], int):
        return f"shows one answer, and there are {len(prompt)} prompts; allowed: 1"
    if (request.n or 1) > 1:
        return f"shows one answer; n={request.n} is not possible with it; allowed: 1"
    return None


def wants_more(request: Any) -> bool:
    """Whether a stream has anything besides vLLM's chunks."""
    fields = {**(request.vllm_xargs or {}), **(request.model_extra or {})}
    return mode_of(request) == "denoise" or any(map(fields.get, ASKED))


async def with_more(
    chunks_of: Callable[[Results], AsyncGenerator[str, None]],
    results: Results,
    draft_chunk: DraftChunk | None,
    num_choices: int,
) -> AsyncGenerator[str, None]:
    """vLLM's chunks, with a chunk for each draft behind those of the same result.

    Args:
        chunks_of: vLLM's generator.
        draft_chunk: makes one; None if nobody wants drafts.
        num_choices: of each prompt.
    """
    queue: asyncio.Queue[str | Exception | None] = asyncio.Queue(1)
    traces: dict[int, dict[str, Any]] = {}

    async def watched() -> Results:
        async for item in results:
            result, choices = opened(item, num_choices)
            params = result.kv_transfer_params or {}
            told = {name: params[name] for name in TRACES if name in params}
            traces.update((index, told) for index, _ in choices)
            yield item
            draft = params.get("dllm_draft")
            if draft_chunk is not None and draft is not None and not result.finished:
                await queue.put(draft_chunk(draft))

    async def pump() -> None:
        try:
            async for chunk in chunks_of(watched()):
                await queue.put(with_trace(chunk, traces))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    task = asyncio.create_task(pump())
    try:
        while (found := await queue.get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        task.cancel()


def opened(
    item: Any, num_choices: int
) -> tuple[RequestOutput, list[tuple[int, CompletionOutput]]]:
    """One of `Results`, and what it says of each choice, by the choice's index in the
    stream.

    Args:
        num_choices: of each prompt.
    """
    number, result = item if isinstance(item, tuple) else (0, item)
    begin = number * num_choices
    return result, [(begin + output.index, output) for output in result.outputs]


def with_trace(chunk: str, traces: dict[int, dict[str, Any]]) -> str:
    """The chunk that ends an answer with what is known of its steps."""
    if FINISHED not in chunk:
        return chunk
    fields = json.loads(chunk.removeprefix("data: "))
    for choice in fields.get("choices", ()):
        told = traces.get(choice["index"])
        if choice.get("finish_reason") and told:
            fields["kv_transfer_params"] = told
    return event(fields)


def event(fields: dict[str, Any]) -> str:
    """A chunk, as compact as vLLM's."""
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n"


def chat_shape(request_id: str, model: str) -> Shape:
    """Of a chat."""
    like = {
        "id": request_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
    }
    return Shape(like, {"delta": {}})


def completion_shape(request_id: str, created: int, model: str) -> Shape:
    """Of a completion."""
    like = {
        "id": request_id,
        "object": "text_completion",
        "created": created,
        "model": model,
    }
    return Shape(like, {"text": ""})


def draft_chunks(
    request: Any, shape: Shape, tokenizer: TokenizerLike | None
) -> DraftChunk | None:
    """What makes a chunk of a draft; None if nobody wants any."""
    if mode_of(request) != "denoise":
        return None
    choices = [{"index": 0, **shape.nothing, "finish_reason": None}]

    def draft_chunk(draft: dict[str, Any]) -> str:
        ids = draft["token_ids"]
        shown = {
            "token_texts": token_texts(ids, tokenizer),
            "text": render(ids, tokenizer),
        }
        more = {"choices": choices, "dllm_draft": {**draft, **shown}}
        return event({**shape.like, **more})

    return draft_chunk
