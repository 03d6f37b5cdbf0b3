"""How a user's value stands in a message."""

import sys
from typing import Any

import pytest

from vllm_dllm.quoting import LONGEST, quoted, shortened


@pytest.mark.parametrize("value", [None, True, -1, 0.5, "a\n'b", {"a": "x" * 80}])
def test_a_short_value_is_shown_as_it_is(value: Any) -> None:
    """A value that differs from what was sent is looked for in vain."""
    assert quoted(value) == repr(value)


def test_of_a_long_value_both_ends_are_shown() -> None:
    """The end often says more than the beginning: a bracket that is missing."""
    text = quoted("a" * 10_000 + "z")
    assert text.startswith("'aaa") and text.endswith("az'")
    assert LONGEST < len(text) < LONGEST + 5
    assert shortened("x" * LONGEST) == "x" * LONGEST
    assert len(shortened("x" * (LONGEST + 1))) < LONGEST + 5


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [10**5000, [10**5000], deep(10 * sys.getrecursionlimit())],
    ids=["digits", "list", "levels"],
)
def test_what_python_does_not_write_is_no_error(value: Any) -> None:
    """The refusal of a value would be one of Python's, without the field."""
    assert quoted(value) == f"<{type(value).__name__} too long to be written>"
