"""Answers to prompts with gaps: each gap, and the whole text with all filled."""

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.openai.completion.protocol import (
    CompletionRequest,
    CompletionResponse,
)
from vllm.tokenizers import TokenizerLike

from vllm_dllm.given import GAP, end_of_gaps
from vllm_dllm.serving.gaps import Cloze
from vllm_dllm.serving.generate import GenerateResponse

TRACES = ("dllm_trajectory", "step_maps")


def take_apart(
    answer: CompletionResponse | GenerateResponse,
    request: CompletionRequest,
    cloze: Cloze,
    tokenizer: TokenizerLike | None,
) -> None:
    """Make that of an answer to `gaps.as_completion`, in place."""
    places, filled = places_of(cloze), 0
    choices: Sequence[Any] = [answer]
    traces: Any = vars(answer)
    if isinstance(answer, CompletionResponse):
        choices, traces = answer.choices, answer.kv_transfer_params or {}
    for choice in choices:
        tokens = list(choice.token_ids)
        whole = cloze.head + tokens
        if len(tokens) == end_of_gaps(cloze.given):
            whole += cloze.given[len(tokens) :]
        choice.dllm_gaps = gaps_of(choice, places, request, tokenizer)
        filled += sum(len(gap["token_ids"]) for gap in choice.dllm_gaps)
        choice.text = text_of(whole, request, tokenizer)
        if isinstance(answer, GenerateResponse):
            answer.full_text, answer.token_ids = choice.text, whole
        else:
            choice.prompt_token_ids = choice.logprobs = None
            choice.token_ids = whole if request.return_token_ids else None
    for name in TRACES:
        if (steps := traces.get(name)) is not None:
            traces[name] = [step for place in places for step in steps[place]]
    # What was given is the prompt, what was filled the completion.
    usage: Any = answer.usage
    usage.prompt_tokens = len(cloze.head + cloze.given) - cloze.given.count(GAP)
    usage.completion_tokens = filled
    usage.total_tokens = usage.prompt_tokens + filled
    if getattr(usage, "nfe", None):
        usage.tokens_per_forward = round(filled / usage.nfe, 3)


def gaps_of(
    choice: Any,
    places: list[slice],
    request: CompletionRequest,
    tokenizer: TokenizerLike | None,
) -> list[dict[str, Any]]:
    """What fills each gap, with its logprobs if these were asked for."""
    logprobs = getattr(choice, "logprobs", None)
    parts = {} if logprobs is None else logprobs.model_dump()
    gaps: list[dict[str, Any]] = []
    for place in places:
        tokens = list(choice.token_ids)[place]
        gaps.append({"text": text_of(tokens, request, tokenizer), "token_ids": tokens})
        if parts:
            of_gap = {name: values[place] for name, values in parts.items()}
            gaps[-1]["logprobs"] = of_gap
    return gaps


def places_of(cloze: Cloze) -> list[slice]:
    """Where each gap lies in what is given."""
    places, end = list[slice](), 0
    for length in cloze.lengths:
        begin = cloze.given.index(GAP, end)
        end = begin + length
        places.append(slice(begin, end))
    return places


def text_of(
    tokens: list[int], request: CompletionRequest, tokenizer: TokenizerLike | None
) -> str:
    if tokenizer is None:
        return ""
    return tokenizer.decode(tokens, skip_special_tokens=request.skip_special_tokens)
