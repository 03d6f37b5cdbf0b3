"""Fields of Diffulex that stand for more than one parameter of ours, or for none."""

from typing import TYPE_CHECKING, Any

from vllm_dllm.decoding.registry import NAMES, get_rule
from vllm_dllm.params import PREFIX
from vllm_dllm.quoting import quoted

if TYPE_CHECKING:
    from vllm_dllm.config import DllmConfig

BUFFER_SIZE = 4
"""Diffulex's own default of `buffer_size`."""
BUFFER = f"{PREFIX}buffer_size"


def implied_strategy(
    body: dict[str, Any], fields: dict[str, Any], config: "DllmConfig"
) -> dict[str, Any]:
    """What `decoding_strategy` stands for: blocks in flight, or a rule."""
    if "decoding_strategy" not in body:
        return {}
    strategy = body["decoding_strategy"]
    if strategy in ("d2f", "dmax"):
        named = fields.get(f"{PREFIX}algorithm", strategy)
        if named != strategy:
            raise ValueError(
                f"decoding_strategy={quoted(strategy)} contradicts the decoding rule "
                f"{quoted(named)} of the same request"
            )
        return {f"{PREFIX}algorithm": strategy}
    if strategy != "multi_bd":
        raise ValueError(
            f"decoding_strategy={quoted(strategy)} is not supported; allowed: "
            "multi_bd, d2f, dmax"
        )
    if BUFFER in fields or config.buffer_size > 1:
        return {}
    return {BUFFER: BUFFER_SIZE}


def rule_of_sampling_mode(
    mode: Any, named: Any, config: "DllmConfig"
) -> dict[str, Any]:
    """The rule that a `sampling_mode` stands for, beside the one that a request names,
    if any."""
    if mode not in ("naive", "edit"):
        raise ValueError(
            f"sampling_mode={quoted(mode)} is not supported; allowed: naive, edit"
        )
    edits = mode == "edit"
    rule = config.algorithm if named is None else named
    if rule not in NAMES or get_rule(rule).revises == edits:
        return {}
    if named is not None:
        raise ValueError(
            f"sampling_mode={quoted(mode)} contradicts the decoding rule "
            f"{quoted(named)} of the same request"
        )
    return {f"{PREFIX}algorithm": "joint_threshold" if edits else "threshold"}


def refuse_remasking(body: dict[str, Any]) -> None:
    """Refuse a threshold that no decoder reads, theirs included."""
    if "remask_threshold" in body:
        raise ValueError(
            f"remask_threshold={quoted(body['remask_threshold'])} is not supported: no "
            "decoding rule makes a token a mask again"
        )
