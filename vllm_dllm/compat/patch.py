"""What every patch is made with."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import ModelConfig


def is_ours(model_config: "ModelConfig | None") -> bool:
    """Whether the model is one of our architectures; others keep vLLM's behaviour."""
    from vllm_dllm.models.registry import FAMILIES

    return model_config is not None and not FAMILIES.keys().isdisjoint(
        model_config.architectures
    )


def wrap_once(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace `owner.name` by `wrapper(original)`, and do nothing the second time."""
    original = vars(owner)[name]
    function = getattr(original, "__func__", getattr(original, "fget", original))
    if getattr(function, "_vllm_dllm", False):
        return
    wrapped: Any = functools.wraps(function)(wrapper(function))
    wrapped._vllm_dllm = True
    for kind in (staticmethod, classmethod, property):
        if isinstance(original, kind):
            wrapped = kind(wrapped)
    setattr(owner, name, wrapped)


@contextmanager
def refusing() -> Iterator[None]:
    """Make a 400 of what our checks raise."""
    from vllm.exceptions import VLLMValidationError

    try:
        yield
    except ValueError as error:
        raise VLLMValidationError(str(error)) from None
