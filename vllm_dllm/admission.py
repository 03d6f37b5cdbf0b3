"""What is asked of a request before the engine gets it; a refusal is a 400."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.params import PREFIX, DllmParams, in_words
from vllm_dllm.quoting import quoted, shortened
from vllm_dllm.regimes.registry import regime_of
from vllm_dllm.request import decoding_of, plan_of, rule_of, wishes_of

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

    from vllm_dllm.config import DllmConfig

UNSUPPORTED: dict[str, str] = {
    "prompt_logprobs": (
        "not supported: a token of the prompt is seen by its neighbours on both sides, "
        "so the model predicts none of them"
    ),
    "prompt_logprob_token_ids": "not supported, as prompt_logprobs are not",
    "thinking_token_budget": "not supported for diffusion language models",
}
"""Fields of `SamplingParams` that no value of can be honoured, and why."""

OBJECTS = ("kv_transfer_params", "ec_transfer_params")
"""What vLLM reads of `extra_args`, of any kind, as an object."""


def check_sampling_params(params: "SamplingParams", config: "DllmConfig") -> None:
    """Accept a request or say why not, before its length is known.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    follows_grammar = params.structured_outputs is not None
    wishes = wishes_of(params.extra_args, config, follows_grammar)
    for key in params.extra_args or {}:
        if key.startswith("diffusion_"):
            raise ValueError(
                f"{shortened(key)} is a field of other diffusion models; this model "
                f"knows {', '.join(PREFIX + name for name in DllmParams.model_fields)}"
            )
    for field in OBJECTS:
        value = (params.extra_args or {}).get(field)
        if value is not None and not isinstance(value, dict):
            raise ValueError(
                f"{field}={quoted(value)} cannot be read; allowed: an object"
            )
    for field, reason in UNSUPPORTED.items():
        if getattr(params, field) is not None:
            raise ValueError(f"{field}={quoted(getattr(params, field))}: {reason}")
    never = {config.mask_token_id, *config.facts.never_answered}
    if params.allowed_token_ids and never.issuperset(params.allowed_token_ids):
        raise ValueError(
            f"allowed_token_ids={quoted(params.allowed_token_ids)} allows no token but "
            "the mask, which is never chosen"
        )
    if params.bad_words and "moves" in get_rule(rule_of(wishes, config)).needs:
        raise ValueError(
            f"bad_words={quoted(params.bad_words)} is not possible with the decoding "
            f"rule {wishes.algorithm!r}, which moves tokens next to each other; choose "
            f"another {PREFIX}algorithm"
        )
    _check_numbers(params, config)


def _check_numbers(params: "SamplingParams", config: "DllmConfig") -> None:
    """Refuse numbers that vLLM lets through and cannot send to the engine, or that no
    table of the worker has columns for."""
    ranges = {
        "logprobs": (-1, config.facts.vocab_size),
        "seed": (-(2**63), 2**63 - 1),
        "top_k": (-1, 2**64 - 1),
        "max_tokens": (1, 2**64 - 1),
        "min_tokens": (0, 2**64 - 1),
    }
    for field, (low, high) in ranges.items():
        value = getattr(params, field)
        if value is not None and not low <= value <= high:
            allowed = in_words({"ge": low, "le": high})
            raise ValueError(
                f"{field}={quoted(value)}: out of range; allowed: {allowed}"
            )


def check_prompt(token_ids: Iterable[int], config: "DllmConfig") -> None:
    """Refuse tokens that the tokenizer knows and the model does not.

    Raises:
        ValueError: naming the first of them.
    """
    allowed = range(config.facts.vocab_size)
    unknown = next((token for token in token_ids if token not in allowed), None)
    if unknown is not None:
        raise ValueError(
            f"the prompt: token id {quoted(unknown)} is not in the model's vocabulary; "
            f"allowed: 0 to {allowed[-1]}"
        )


def check_length(
    sampling_params: "SamplingParams", config: "DllmConfig", prompt_len: int
) -> None:
    """Refuse what only the length of an answer shows, above all a request that would
    wait for ever: with several blocks in flight if one forward cannot hold them, and
    with full attention if it cannot hold a refresh, or the pages of one.

    Raises:
        ValueError: naming the numbers.
    """
    max_tokens = sampling_params.max_tokens
    assert max_tokens is not None
    max_tokens = max(1, min(max_tokens, config.facts.max_model_len - prompt_len))
    decoding = decoding_of(sampling_params, config, max_tokens)
    plan = plan_of(decoding, config, prompt_len, max_tokens)
    regime = regime_of(config.facts, decoding.algorithm)
    regime.check_plan(plan, decoding, config, prompt_len, max_tokens)


def check_session(resumable: bool) -> None:
    """Refuse a session, whose prompt goes on after an answer.

    vLLM keeps of that what has KV: the tokens of an unfinished block would be lost.
    """
    if resumable:
        raise ValueError(
            "streaming input is not supported for diffusion language models; send each "
            "turn as a request of its own, of which the prefix cache knows the old part"
        )
