"""Fields of a request that only some regimes know."""

from collections.abc import Iterable
from typing import Any

from vllm_dllm.params import FULL_ATTENTION_FIELDS, PREFIX, WINDOW_FIELDS
from vllm_dllm.quoting import quoted


def refuse_fields(own: dict[str, Any], names: Iterable[str], why: str) -> None:
    """Raise ValueError for the first of `names` that a request itself names."""
    for name in names:
        if name in own:
            raise ValueError(f"{PREFIX}{name}={quoted(own[name])} {why}")


def refuse_window(own: dict[str, Any]) -> None:
    """Raise ValueError for a field of WeDLM's window."""
    refuse_fields(own, WINDOW_FIELDS, "is for WeDLM's window that slides")


def refuse_other_attentions(own: dict[str, Any]) -> None:
    """Raise ValueError for a field without a meaning where blocks leave exact KV."""
    refuse_fields(
        own,
        FULL_ATTENTION_FIELDS,
        "has no meaning for a block-causal model, whose KV cache is exact; it is "
        "for models with full attention",
    )
    refuse_window(own)
