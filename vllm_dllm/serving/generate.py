"""`/generate` and `/v1/generate`: the routes of other diffusion servers, on vLLM's.

A body is translated into a completion request, so that prompts, parameters, limits,
adapters, logging and errors are vLLM's own; what is ours is the shape of bodies,
answers and events.
"""

import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator
from types import NoneType
from typing import Any, Literal

from pydantic import ConfigDict, Field
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput

from vllm_dllm.quoting import quoted, shortened
from vllm_dllm.serving.body import Kinds, check_kinds, completion_of
from vllm_dllm.serving.drafts import render, token_texts
from vllm_dllm.serving.gaps import LENGTHS, MARKED
from vllm_dllm.serving.lift import differ
from vllm_dllm.serving.streams import DRAFTS
from vllm_dllm.serving.usage import forwards_of

GRAMMARS = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
"""SGLang's names of structured output, and vLLM's."""
KINDS_OF_GRAMMARS: Kinds = {
    "json_schema": ((str, dict, NoneType), "an object, or one as text"),
    "regex": ((str, NoneType), "text"),
    "ebnf": ((str, NoneType), "text"),
}
MAX_TOKENS = 512
"""Of requests that do not say, as in Diffulex."""


class GenerateRequest(OpenAIBaseModel):
    """The body: Diffulex's shape, or SGLang's.

    All fields of `/v1/completions` and all `dllm_*` fields may be there as well.
    """

    model_config = ConfigDict(extra="allow")

    prompt: str | list[int] | list[str] | list[list[int]] | None = None
    """Text or token ids; with `dllm_gaps` the pieces between the gaps."""
    text: str | None = None
    """SGLang: the prompt as text."""
    input_ids: list[int] | None = None
    """SGLang: the prompt as token ids."""
    sampling_params: dict[str, Any] = Field(default_factory=dict)
    """SGLang: `temperature`, `max_new_tokens`, `top_p`, `stop`, `regex` and so on."""
    stream: bool = False
    stream_mode: Literal["block_append", "denoise"] = "block_append"
    """What a stream is made of: stable text alone, or every step's draft too."""

    def to_completion(self) -> CompletionRequest:
        """The same as a request to `/v1/completions`.

        Raises:
            VLLMValidationError: naming the field and what is allowed.
        """
        prompts = {
            name: value
            for name in ("prompt", "text", "input_ids")
            if (value := getattr(self, name)) is not None
        }
        if len(prompts) != 1:
            raise VLLMValidationError(
                f"one of prompt, text and input_ids is needed, got {len(prompts)}",
                parameter="prompt",
            )
        check_kinds(self.sampling_params, KINDS_OF_GRAMMARS)
        fields = dict(self.model_extra or {})
        names = {"max_new_tokens": "max_tokens"}
        for key, value in self.sampling_params.items():
            name = names.get(key, key)
            if key in GRAMMARS and value is not None:
                name, value = "structured_outputs", {GRAMMARS[key]: value}
            if differ(fields.setdefault(name, value), value):
                raise VLLMValidationError(
                    f"sampling_params.{shortened(key)}={quoted(value)} and "
                    f"{shortened(name)}={quoted(fields[name])} differ",
                    parameter=name,
                )
        if fields.get("n") not in (None, 1):
            raise VLLMValidationError(
                f"n={quoted(fields['n'])} is not supported by this route; allowed: 1",
                parameter="n",
            )
        if fields.get("logprobs") is not None:
            raise VLLMValidationError(
                f"logprobs={quoted(fields['logprobs'])} is not supported by this "
                "route; /v1/completions has them",
                parameter="logprobs",
            )
        [prompt] = prompts.values()
        has_gaps = fields.get(LENGTHS) is not None or bool(fields.get(MARKED))
        if not has_gaps:
            fields.setdefault("max_tokens", MAX_TOKENS)
            if isinstance(prompt, list) and not all(type(t) is int for t in prompt):
                raise VLLMValidationError(
                    f"prompt={quoted(prompt)} is several; allowed: one text or one "
                    f"list of token ids, or the pieces around {LENGTHS}",
                    parameter="prompt",
                )
        fields |= {"prompt": prompt, "stream": self.stream}
        if self.stream_mode == "denoise":
            if not self.stream:
                raise VLLMValidationError(
                    "stream_mode='denoise' needs stream=true", parameter="stream_mode"
                )
            fields[DRAFTS] = True
        return completion_of(fields)


class GenerateUsage(OpenAIBaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class GenerateEnd(OpenAIBaseModel):
    """What an answer ends with, streamed or not."""

    id: str
    full_text: str
    """Prompt and answer."""
    nfe: int | None
    """Denoising forwards."""
    nfe_busy: int
    """Of these, with the threshold of a busy server."""
    finish_reason: str | None
    stop_reason: int | str | None
    usage: GenerateUsage
    dllm_trajectory: list[int] | None
    """With `dllm_return_trajectory`: the step of its block that decided each token."""
    step_maps: list[int] | None
    """With `return_step_maps`: the same from 1 on."""
    dllm_rest: dict[str, list[int]] | None
    """With `dllm_return_rest`: what was decoded behind the end, and its steps."""


class GenerateResponse(GenerateEnd):
    """An answer that is not streamed."""

    text: str
    token_ids: list[int]
    dllm_gaps: list[dict[str, Any]] | None = None
    """Of a prompt with gaps: each one's `text` and `token_ids`. `text` is the whole
    then."""


class GenerateServing(OpenAIServingCompletion):
    """vLLM's completion handler with other answers."""

    @classmethod
    def of(cls, handler: OpenAIServingCompletion) -> "GenerateServing":
        """The same handler, answering in this shape."""
        serving = copy.copy(handler)
        serving.__class__ = cls
        return serving

    def request_output_to_completion_response(
        self, final_res_batch: list[RequestOutput], *args: Any, **kwargs: Any
    ) -> GenerateResponse:
        [result] = final_res_batch
        [choice] = result.outputs
        full_text = self.prompt_text(result.prompt, result.prompt_token_ids)
        full_text += choice.text
        end = end_of(result, full_text, len(choice.token_ids))
        token_ids = list(choice.token_ids)
        return GenerateResponse(**dict(end), text=choice.text, token_ids=token_ids)

    async def completion_stream_generator(
        self,
        request: CompletionRequest,
        engine_inputs: list[Any],
        result_generator: AsyncIterator[tuple[int, RequestOutput]],
        *args: Any,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        try:
            [engine_input] = engine_inputs
            text = self.prompt_text(
                self._extract_prompt_text(engine_input),
                engine_input.get("prompt_token_ids"),
            )
            sent = 0
            async for _, result in result_generator:
                [choice] = result.outputs
                params = result.kv_transfer_params or {}
                token_ids, draft = list(choice.token_ids), params.get("dllm_draft")
                if choice.text or token_ids:
                    forced = self.forced_part(token_ids, sent, params)
                    yield event(
                        "append", text=choice.text, token_ids=token_ids, **forced
                    )
                text, sent = text + choice.text, sent + len(token_ids)
                if draft is not None:
                    ids = draft["token_ids"]
                    tokenizer = self.renderer.tokenizer
                    texts = token_texts(ids, tokenizer)
                    text_of_draft = render(ids, tokenizer)
                    yield event("draft", **draft, token_texts=texts, text=text_of_draft)
                if result.finished:
                    yield event("finish", **end_of(result, text, sent).model_dump())
        except Exception as error:
            yield f"data: {self.create_streaming_error_response(error)}\n\n"
        yield "data: [DONE]\n\n"

    def forced_part(
        self, token_ids: list[int], start: int, params: dict[str, Any]
    ) -> dict[str, Any]:
        """What an event tells of tokens that a grammar decided; `start`: position of
        the first token in the answer."""
        own = range(start, start + len(token_ids))
        forced = [p for p in params.get("dllm_forced", ()) if p in own]
        tokenizer = self.renderer.tokenizer
        if not forced or tokenizer is None:
            return {}
        texts = [tokenizer.decode([t], skip_special_tokens=True) for t in token_ids]
        return {"token_texts": texts, "forced": forced}

    def prompt_text(self, text: str | None, token_ids: list[int] | None) -> str:
        """The prompt as text, however it was given."""
        tokenizer = self.renderer.tokenizer
        if text is None and token_ids and tokenizer is not None:
            text = tokenizer.decode(token_ids)
        return text or ""


def event(kind: str, **fields: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps({'type': kind, **fields}, ensure_ascii=False)}\n\n"


def end_of(
    result: RequestOutput, full_text: str, completion_tokens: int
) -> GenerateEnd:
    """The end of an answer of `completion_tokens` tokens."""
    [choice] = result.outputs
    prompt_tokens = len(result.prompt_token_ids or ())
    params = result.kv_transfer_params or {}
    forwards = forwards_of(result)
    return GenerateEnd(
        id=result.request_id,
        full_text=full_text,
        nfe=forwards.all if forwards else None,
        nfe_busy=forwards.busy if forwards else 0,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        usage=GenerateUsage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        ),
        dllm_trajectory=params.get("dllm_trajectory"),
        step_maps=params.get("step_maps"),
        dllm_rest=params.get("dllm_rest"),
    )
