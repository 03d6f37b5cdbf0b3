"""Decoding parameters in the body of a request: our names, and other servers'.

Only names are dealt with here, and what a request asks for in other words than by a
parameter of ours. Types and limits are checked by `request.wishes_of`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm_dllm.decoding.registry import ALIASES, get_rule
from vllm_dllm.efforts import fields_of_effort
from vllm_dllm.params import PREFIX
from vllm_dllm.quoting import quoted, shortened
from vllm_dllm.serving.diffulex import (
    implied_strategy,
    refuse_remasking,
    rule_of_sampling_mode,
)

if TYPE_CHECKING:
    from vllm_dllm.config import DllmConfig

NAMES: dict[str, str] = {
    "algorithm": "dllm_algorithm",
    "alg": "dllm_algorithm",
    "steps": "dllm_steps",
    "num_denoising_steps": "dllm_steps",
    "threshold": "dllm_threshold",
    "accept_threshold": "dllm_threshold",
    "factor": "dllm_factor",
    "local_leap_anchor_threshold": "dllm_local_leap_anchor_threshold",
    "local_leap_neighbor_threshold": "dllm_local_leap_neighbor_threshold",
    "local_leap_radius": "dllm_local_leap_radius",
    "edit_threshold": "dllm_edit_threshold",
    "max_post_steps": "dllm_max_post_steps",
    "max_post_edit_steps": "dllm_max_post_steps",
    "max_nfe": "dllm_max_nfe",
    "buffer_size": "dllm_buffer_size",
    "add_block_threshold": "dllm_add_block_threshold",
    "semi_complete_threshold": "dllm_semi_complete_threshold",
    "token_stability_threshold": "dllm_token_stability_threshold",
    "block_length": "dllm_block_length",
    "eps": "dllm_eps",
    "alg_temp": "dllm_alg_temp",
    "cfg_scale": "dllm_cfg_scale",
    "logits_eos_inf": "dllm_logits_eos_inf",
    "confidence_eos_eot_inf": "dllm_confidence_eos_eot_inf",
    "suffix": "dllm_suffix_token_ids",
    "return_step_maps": "dllm_return_step_maps",
}
"""Other names of our fields. `suffix` has become token ids when it comes here."""

REMASKING: dict[str, tuple[str, ...]] = {
    "low_confidence": ("low_confidence", "threshold", "factor"),
    "random": ("random",),
}
"""The rules that decode by what `remasking` names."""

SWITCHES: tuple[str, ...] = (
    "use_local_leap",
    "use_cache",
    "use_dual_cache",
    "force_single_batch",
    "logits_eos_inf",
    "confidence_eos_eot_inf",
)
"""Fields that are true or false. `force_single_batch` is right either way: a request's
tokens are the same alone and in company."""

OFF: dict[str, Any] = {
    "cfg_scale": 0,
    "logits_eos_inf": False,
    "confidence_eos_eot_inf": False,
    "suffix": [],
}
"""Features of full attention that a client of any model may switch off."""


def lift(
    body: dict[str, Any], config: "DllmConfig", extra_args: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The `dllm_*` fields that the fields of `body` amount to.

    `extra_args` (`vllm_xargs` over HTTP) are part of the same request: their `dllm_*`
    fields are in the result too. A null in `body` counts as not given.

    Raises:
        ValueError: for a value that cannot be honoured, or that contradicts another
            field. Names the fields and their values.
    """
    body = {key: value for key, value in body.items() if value is not None}
    check_switches(body)
    refuse_remasking(body)
    if not config.facts.full_attention:
        body = {k: v for k, v in body.items() if k not in OFF or OFF[k] != v}
    fields: dict[str, Any] = {}
    spellings: dict[str, str] = {}
    for spelling, name, value in spelled(body, extra_args or {}):
        first = spellings.setdefault(name, spelling)
        if differ(fields.setdefault(name, value), value):
            raise ValueError(
                f"{shortened(first)}={quoted(fields[name])} and "
                f"{shortened(spelling)}={quoted(value)} name the same parameter "
                f"({shortened(name)}) and differ"
            )
    fields |= implied_cache(body, fields, config)
    fields |= implied_strategy(body, fields, config)
    rule = implied_rule(body, fields, config)
    if rule is not None:
        fields["dllm_algorithm"] = rule
    if "sampling_mode" in body:
        named = plain(fields.get("dllm_algorithm"))
        fields |= rule_of_sampling_mode(body["sampling_mode"], named, config)
    if config.facts.full_attention and spellings.get("dllm_steps") in NAMES:
        # The authors' functions take both, and look at the steps only without a
        # threshold or a factor.
        named = plain(fields.get("dllm_algorithm", config.algorithm))
        if named in ("threshold", "factor", "confidence_threshold"):
            del fields["dllm_steps"]
    if "reasoning_effort" in body:
        fields |= fields_of_effort(body["reasoning_effort"], fields, config)
    return fields


def implied_cache(
    body: dict[str, Any], fields: dict[str, Any], config: "DllmConfig"
) -> dict[str, Any]:
    """The cache that Fast-dLLM's switches stand for."""
    use, dual = body.get("use_cache"), body.get("use_dual_cache")
    if not config.facts.full_attention:
        if use is False:
            raise ValueError(
                f"use_cache={quoted(use)} is not supported: the KV cache of a "
                "block-causal model is exact, and decoding always uses it"
            )
        return {}
    if use is None and dual is None:
        return {}
    # The dual cache is a kind of cache: without `use_cache` it asks for one.
    uses = bool(dual) if use is None else bool(use)
    cache = "none" if not uses else "dual" if dual else "prefix"
    named = fields.get("dllm_cache", cache)
    if named != cache:
        raise ValueError(
            f"use_cache={quoted(use)} and use_dual_cache={quoted(dual)} ask for the "
            f"cache {cache!r}, and dllm_cache={quoted(named)} for another one"
        )
    return {"dllm_cache": cache}


def spelled(
    body: dict[str, Any], extra_args: dict[str, Any]
) -> Iterator[tuple[str, str, Any]]:
    """(what the request calls it, what we call it, value) of each parameter."""
    for key, value in extra_args.items():
        if key.startswith(PREFIX):
            yield f"vllm_xargs.{key}", key, value
    for key, value in body.items():
        if key in NAMES or key.startswith(PREFIX):
            yield key, NAMES.get(key, key), value


def differ(one: Any, other: Any) -> bool:
    """Whether two spellings of a parameter ask for two things. NaN is one thing, which
    is refused as what it is."""
    return bool(plain(one) != plain(other)) and (one == one or other == other)


def plain(value: Any) -> Any:
    """`value` without the choice between a rule's own name and its aliases."""
    return ALIASES.get(value, value) if isinstance(value, str) else value


def implied_rule(
    body: dict[str, Any], fields: dict[str, Any], config: "DllmConfig"
) -> str | None:
    """The decoding rule that a request asks for without `dllm_algorithm`."""
    named = plain(fields.get("dllm_algorithm"))
    wishes: list[tuple[str, tuple[str, ...]]] = []
    if "remasking" in body:
        remasking = body["remasking"]
        if remasking not in tuple(REMASKING):
            raise ValueError(
                f"remasking={quoted(remasking)} is not supported; allowed: "
                f"{', '.join(REMASKING)}"
            )
        wishes.append((f"remasking={quoted(remasking)}", REMASKING[remasking]))
    leaps = body.get("use_local_leap")
    if leaps:
        wishes.append((f"use_local_leap={leaps!r}", ("local_leap",)))
    elif leaps is not None and named == "local_leap":
        raise ValueError(
            f"use_local_leap={leaps!r} contradicts the decoding rule 'local_leap' of "
            "the same request"
        )
    for wish, rules in wishes:
        if named is not None and named not in rules:
            raise ValueError(
                f"{wish} contradicts the decoding rule {quoted(named)} of the same "
                f"request; it goes with {', '.join(rules)}"
            )
    if named is not None:
        return None
    if len(wishes) == 2:
        raise ValueError(f"{wishes[0][0]} contradicts {wishes[1][0]}")
    rules = wishes[0][1] if wishes else ("factor",)
    if not wishes and "threshold" not in get_rule(config.algorithm).parameters:
        rules = ("factor", "threshold")
    # Decoding by confidence becomes decoding by threshold or by factor where these are
    # given, as in the servers whose names these are.
    for rule in ("factor", "threshold"):
        if rule in rules and f"{PREFIX}{rule}" in fields:
            return rule
    return rules[0] if wishes else None


def check_switches(body: dict[str, Any]) -> None:
    """Refuse switches that are neither on nor off."""
    for name in SWITCHES:
        if name in body and body[name] not in (True, False):
            raise ValueError(f"{name}={quoted(body[name])} is neither true nor false")
