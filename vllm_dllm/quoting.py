"""How a user's value stands in a message: as Python writes it, and never at length."""

LONGEST = 100
"""Characters of a value that are shown; a body may hold megabytes."""


def quoted(value: object) -> str:
    """The value as Python writes it, its middle left out where it is long."""
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):
        # Python writes no integer of thousands of digits, and no list of thousands of
        # levels.
        return f"<{type(value).__name__} too long to be written>"


def shortened(text: str) -> str:
    """`text` with at most about `LONGEST` characters."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}...{text[-half:]}"
