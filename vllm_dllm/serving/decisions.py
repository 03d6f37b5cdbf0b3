"""`/v1/decisions`: how likely labels are as an answer, read from one forward.

A decision is a completion whose first canvas is decided in one step, with the logprobs
of the labels' tokens; what is decided is not told.
"""

from math import exp
from typing import Any

from pydantic import ConfigDict
from vllm.entrypoints.openai.completion.protocol import (
    CompletionRequest,
    CompletionResponse,
)
from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel
from vllm.exceptions import VLLMValidationError
from vllm.tokenizers import TokenizerLike

from vllm_dllm.config import DllmConfig
from vllm_dllm.quoting import quoted
from vllm_dllm.serving.body import completion_of
from vllm_dllm.serving.gaps import tokens_of

MOST_LABELS = 64
MOST_TOKENS = 128
"""Different tokens of all labels; vLLM's limit of `logprob_token_ids`."""
REGIMES = ("block_causal", "full")
"""Attentions whose first step is of a canvas of masks."""


class DecisionRequest(OpenAIBaseModel):
    """The body. All other fields are refused, but for those that change no logprob."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    prompt: str | list[int] | list[str] | list[list[int]]
    """One, or several that are read in one batch."""
    labels: list[str] | list[list[int]]
    """2 to 64, as text or token ids."""
    add_special_tokens: bool = True
    priority: int = 0
    user: str | None = None


class LabelReading(OpenAIBaseModel):
    token_ids: list[int]
    logprobs: list[float]
    """Of its first tokens at the first positions of the canvas, each by itself; -9999
    for what is never an answer."""
    logprob: float
    """Their sum."""
    share: float
    """What the label has of all labels' probabilities together."""


class Decision(OpenAIBaseModel):
    index: int
    """Of the prompt."""
    labels: list[LabelReading]
    """In the order of the request."""


class DecisionResponse(OpenAIBaseModel):
    id: str
    model: str
    decisions: list[Decision]
    usage: dict[str, int]


def tokens_of_labels(
    request: DecisionRequest, config: DllmConfig, tokenizer: TokenizerLike | None
) -> list[list[int]]:
    """The tokens of each label.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    if config.facts.attention not in REGIMES:
        raise ValueError(
            "/v1/decisions reads a first step of masks alone, which this model lacks; "
            "it is for block-causal models and those with full attention"
        )
    number = len(request.labels)
    if not 2 <= number <= MOST_LABELS:
        raise ValueError(
            f"labels={quoted(request.labels)} are {number}; allowed: 2 to {MOST_LABELS}"
        )
    labels = [tokens_of(label, tokenizer, special=False) for label in request.labels]
    for label, tokens in zip(request.labels, labels, strict=True):
        if not tokens:
            raise ValueError(
                f"labels: {quoted(label)} has no token; allowed: at least 1"
            )
        if config.facts.full_attention and len(tokens) >= config.facts.max_model_len:
            raise ValueError(
                f"labels: {quoted(label)} has {len(tokens)} tokens; allowed: less than "
                f"{config.facts.max_model_len} (max_model_len)"
            )
        for token in tokens:
            if not 0 <= token < config.facts.vocab_size:
                raise ValueError(
                    f"labels: {quoted(token)} is not in the vocabulary; allowed: 0 to "
                    f"{config.facts.vocab_size - 1}"
                )
    found = {token for tokens in labels for token in tokens}
    if len(found) > MOST_TOKENS:
        raise ValueError(
            f"labels={quoted(request.labels)} have {len(found)} different tokens; "
            f"allowed: {MOST_TOKENS}"
        )
    return labels


def as_completion(
    request: DecisionRequest, labels: list[list[int]], config: DllmConfig
) -> CompletionRequest:
    """The completion whose logprobs are read."""
    longest = max(map(len, labels))
    if not config.facts.full_attention:
        longest = min(longest, config.block)
    named = sorted({token for tokens in labels for token in tokens})
    fields: dict[str, Any] = {"dllm_algorithm": "low_confidence", "dllm_steps": 1}
    if config.facts.full_attention:
        fields |= {"dllm_block_length": longest, "dllm_cache": "none"}
    return completion_of(
        {
            **request.model_dump(exclude={"labels"}),
            **fields,
            "max_tokens": longest,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": len(named),
            "logprob_token_ids": named,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
        }
    )


def readings(
    answer: CompletionResponse, labels: list[list[int]], config: DllmConfig
) -> DecisionResponse:
    """What the answer to `as_completion` says of the labels.

    Raises:
        VLLMValidationError: if a label had no room behind a prompt.
    """
    decisions = []
    longest = max(map(len, labels))
    for choice in answer.choices:
        assert choice.logprobs is not None
        prompt = len(choice.prompt_token_ids or ())
        columns = [top or {} for top in choice.logprobs.top_logprobs]
        if not config.facts.full_attention:
            # What lies behind the first canvas was decided by another forward.
            columns = columns[: config.block - prompt % config.block]
        elif len(columns) < longest:
            raise VLLMValidationError(
                f"labels: the longest has {longest} tokens, and behind the prompt of "
                f"{prompt} there is room for {len(columns)}; allowed: together at most "
                f"{config.facts.max_model_len} (max_model_len)",
                parameter="labels",
            )
        told = [
            [
                column[f"token_id:{token}"]
                for token, column in zip(tokens, columns, strict=False)
            ]
            for tokens in labels
        ]
        sums = list(map(sum, told))
        best = max(sums)
        shares = [exp(value - best) for value in sums]
        decisions.append(
            Decision(
                index=choice.index,
                labels=[
                    LabelReading(
                        token_ids=tokens,
                        logprobs=values,
                        logprob=total,
                        share=share / sum(shares),
                    )
                    for tokens, values, total, share in zip(
                        labels, told, sums, shares, strict=True
                    )
                ],
            )
        )
    prompts = answer.usage.prompt_tokens
    usage = {"prompt_tokens": prompts, "completion_tokens": 0, "total_tokens": prompts}
    return DecisionResponse(
        id=answer.id, model=answer.model, decisions=decisions, usage=usage
    )
