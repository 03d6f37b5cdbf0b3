"""What every patch is made with: it states which names of vLLM's it needs."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm_dllm.compat.symbols import place_of

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


class Change(NamedTuple):
    """What `setattr` is called with."""

    owner: Any
    name: str
    value: Any


@dataclass(frozen=True)
class Patch:
    """A wrapper for functions of vLLM's; calling it puts it in place."""

    wrapper: Wrapper
    targets: tuple[str, ...]
    """The functions, "module:attribute"."""
    uses: tuple[str, ...]
    """Other private names that the wrapper needs."""

    @property
    def symbols(self) -> tuple[str, ...]:
        return self.targets + self.uses

    def changes(self) -> Iterator[Change]:
        """What is to be set; nothing where it has been."""
        for target in self.targets:
            owner, name = place_of(target)
            original = vars(owner)[name]
            function = getattr(
                original, "__func__", getattr(original, "fget", original)
            )
            if getattr(function, "_vllm_dllm", False):
                continue
            wrapped: Any = functools.wraps(function)(self.wrapper(function))
            wrapped._vllm_dllm = True
            for kind in (staticmethod, classmethod, property):
                if isinstance(original, kind):
                    wrapped = kind(wrapped)
            yield Change(owner, name, wrapped)

    def __call__(self) -> None:
        apply([self])


def wraps(*targets: str, uses: Iterable[str] = ()) -> Callable[[Wrapper], Patch]:
    """Make a patch of a wrapper. A second call of the patch does nothing."""
    return lambda wrapper: Patch(wrapper, targets, tuple(uses))


@dataclass(frozen=True)
class Call:
    """A function of ours that calls or fills private things of vLLM's."""

    function: Callable[[], None]
    symbols: tuple[str, ...]

    def __call__(self) -> None:
        self.function()


def needs(*symbols: str) -> Callable[[Callable[[], None]], Call]:
    return lambda function: Call(function, symbols)


def apply(patches: Iterable[Patch]) -> None:
    """Put patches in place: all of them, or none if one cannot be made."""
    for change in [change for patch in patches for change in patch.changes()]:
        setattr(*change)


@contextmanager
def refusing() -> Iterator[None]:
    """Make a 400 of what our checks raise."""
    from vllm.exceptions import VLLMValidationError

    try:
        yield
    except ValueError as error:
        raise VLLMValidationError(str(error)) from None
