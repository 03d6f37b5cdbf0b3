"""What every patch is made with."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
