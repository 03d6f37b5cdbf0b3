"""Decoding parameters in the body of a request: our names, and other servers'.

Only names are dealt with here, and what a request asks for in other words than by a
parameter of ours. Types and limits are checked by `request.resolve`.
"""

from collections.abc import Iterator
from typing import Any

from vllm_dllm.decoding.registry import ALIASES
from vllm_dllm.request import PREFIX

NAMES: dict[str, str] = {
    "algorithm": "dllm_algorithm",
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
    "block_length": "dllm_block_length",
}
"""Other names of our fields."""

REMASKING: dict[str, tuple[str, ...]] = {
    "low_confidence": ("low_confidence", "threshold", "factor"),
    "random": ("random",),
}
"""The rules that decode by what `remasking` names."""

NO_EFFECT: tuple[str, ...] = ("force_single_batch", "use_dual_cache")
"""Switches that are right either way: a request's tokens are the same alone and in
company, and the cache of a block-causal model is exact, so there is no second kind."""


def lift(
    body: dict[str, Any], extra_args: dict[str, Any] | None = None
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
    fields: dict[str, Any] = {}
    spellings: dict[str, str] = {}
    for spelling, name, value in spelled(body, extra_args or {}):
        first = spellings.setdefault(name, spelling)
        if plain(fields.setdefault(name, value)) != plain(value):
            raise ValueError(
                f"{first}={fields[name]!r} and {spelling}={value!r} name the same "
                f"parameter ({name}) and differ"
            )
    rule = implied_rule(body, fields)
    return fields if rule is None else {**fields, "dllm_algorithm": rule}


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


def plain(value: Any) -> Any:
    """`value` without the choice between a rule's own name and its aliases."""
    return ALIASES.get(value, value) if isinstance(value, str) else value


def implied_rule(body: dict[str, Any], fields: dict[str, Any]) -> str | None:
    """The decoding rule that a request asks for without `dllm_algorithm`."""
    named = plain(fields.get("dllm_algorithm"))
    wishes: list[tuple[str, tuple[str, ...]]] = []
    if "remasking" in body:
        remasking = body["remasking"]
        if remasking not in tuple(REMASKING):
            raise ValueError(
                f"remasking={remasking!r} is not supported; allowed: "
                f"{', '.join(REMASKING)}"
            )
        wishes.append((f"remasking={remasking!r}", REMASKING[remasking]))
    if body.get("use_local_leap"):
        wishes.append((f"use_local_leap={body['use_local_leap']!r}", ("local_leap",)))
    elif "use_local_leap" in body and named == "local_leap":
        raise ValueError(
            f"use_local_leap={body['use_local_leap']!r} contradicts the decoding rule "
            "'local_leap' of the same request"
        )
    for wish, rules in wishes:
        if named is not None and named not in rules:
            raise ValueError(
                f"{wish} contradicts the decoding rule {named!r} of the same request; "
                f"it goes with {', '.join(rules)}"
            )
    if named is not None:
        return None
    if len(wishes) == 2:
        raise ValueError(f"{wishes[0][0]} contradicts {wishes[1][0]}")
    rules = wishes[0][1] if wishes else ("factor",)
    # Decoding by confidence becomes decoding by threshold or by factor where these are
    # given, as in the servers whose names these are.
    for rule in ("factor", "threshold"):
        if rule in rules and f"{PREFIX}{rule}" in fields:
            return rule
    return rules[0] if wishes else None


def check_switches(body: dict[str, Any]) -> None:
    """Refuse switches that are no booleans, and values that cannot be honoured."""
    for name in ("use_local_leap", "use_cache", *NO_EFFECT):
        if name in body and body[name] not in (True, False):
            raise ValueError(f"{name}={body[name]!r} is neither true nor false")
    if not body.get("use_cache", True):
        raise ValueError(
            f"use_cache={body['use_cache']!r} is not supported: the KV cache of a "
            "block-causal model is exact, and decoding always uses it"
        )
    if body.get("cfg_scale", 0) != 0:
        raise ValueError(
            f"cfg_scale={body['cfg_scale']!r} is not supported: there is no "
            "classifier-free guidance; allowed: 0"
        )
