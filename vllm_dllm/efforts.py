"""Efforts: what the `reasoning_effort` of a request means for its decoding.

Clients have a knob for how much thought an answer is worth. Where a request says
nothing of its decoding itself, the knob chooses one of the server's presets.
"""

from typing import Any

from vllm_dllm.config import DllmConfig, Effort
from vllm_dllm.params import PREFIX, RuleParams
from vllm_dllm.quoting import quoted
from vllm_dllm.request import wishes_of

Presets = dict[Effort, dict[str, Any]]
"""Fields of a request, without `dllm_`, by effort."""

QUALITY = {"algorithm": "threshold", "threshold": 0.95}
BALANCED = {"algorithm": "threshold", "threshold": 0.8}
FAST = {"algorithm": "threshold", "threshold": 0.5}
PRESETS: Presets = {"none": FAST, "low": FAST, "medium": BALANCED, "high": QUALITY}
"""For models that were trained to be sure of several tokens at once."""
FAST_DLLM = {"algorithm": "threshold", "threshold": 0.9}
FULL_PRESETS: Presets = {"none": FAST, "low": FAST, "medium": FAST_DLLM}
"""For LLaDA and LLaDA-MoE. A high effort is their authors' rule, which the server has
anyway. Dream's and DiffuLLaMA's are set by the steps of a whole answer, whose length is
the request's."""
FITTING = {
    ("block_causal", "threshold"): PRESETS,
    ("full", "low_confidence"): FULL_PRESETS,
}
"""Those of docs/presets.md, by the attention and the rule of the servers that they were
measured for."""
LIKE = {"minimal": "low", "xhigh": "high", "max": "high"}
"""Efforts that mean what another one does."""
OF_RULES = frozenset(PREFIX + name for name in RuleParams.model_fields)


def fields_of_effort(
    effort: Any, own: dict[str, Any], config: DllmConfig
) -> dict[str, Any]:
    """The `dllm_*` fields that an effort adds to those of the request.

    Args:
        own: the request's `dllm_*` fields. One of a rule, and the effort adds nothing.

    Raises:
        ValueError: for an effort that nobody knows.
    """
    presets = presets_of(config)
    name = LIKE.get(effort, effort) if isinstance(effort, str) else effort
    if name not in tuple(PRESETS):
        raise ValueError(
            f"reasoning_effort={quoted(effort)} is not known; allowed: "
            f"{', '.join([*PRESETS, *LIKE])}"
        )
    if OF_RULES & own.keys():
        return {}
    preset = {PREFIX + key: value for key, value in presets.get(name, {}).items()}
    return {**preset, **own}


def presets_of(config: DllmConfig) -> Presets:
    """What efforts mean on a server: what it was told, else ours where they fit."""
    if config.efforts is not None:
        return config.efforts
    return FITTING.get((config.facts.attention, config.algorithm), {})


def check_efforts(config: DllmConfig) -> None:
    """Refuse presets that no request could have.

    Raises:
        ValueError: naming effort, field and value.
    """
    for effort, fields in presets_of(config).items():
        try:
            wishes_of({PREFIX + key: value for key, value in fields.items()}, config)
        except ValueError as error:
            raise ValueError(f"dllm.efforts, {effort!r}: {error}") from None
