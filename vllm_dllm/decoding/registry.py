"""Names of decoding rules. Classes are imported when first used."""

from functools import cache
from importlib import import_module

from vllm_dllm.decoding.base import DecodingRule

RULES: dict[str, str] = {
    "low_confidence": "vllm_dllm.decoding.low_confidence:LowConfidence",
    "threshold": "vllm_dllm.decoding.threshold:Threshold",
    "sequential": "vllm_dllm.decoding.sequential:Sequential",
}

ALIASES: dict[str, str] = {
    "low_confidence_static": "low_confidence",
    "low_confidence_dynamic": "threshold",
    "LowConfidence": "threshold",
}
"""Names that other engines and the authors' scripts use for the same rules."""


def canonical_name(name: str) -> str:
    """The rule's own name. Raises ValueError for a name that is neither that nor an
    alias."""
    name = ALIASES.get(name, name)
    if name not in RULES:
        raise ValueError(
            f"unknown decoding rule {name!r}; supported: "
            f"{', '.join([*RULES, *ALIASES])}"
        )
    return name


@cache
def get_rule(name: str) -> DecodingRule:
    """The rule called `name` (a canonical name). Rules hold no state of requests."""
    module, _, cls = RULES[name].partition(":")
    return getattr(import_module(module), cls)()
