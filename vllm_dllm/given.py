"""What a request gives behind its prompt: tokens of the canvas, and what follows it.

A list of token ids from the end of the prompt on, with a `GAP` at each position that is
decoded. A suffix is the part behind the last gap.
"""

from collections.abc import Sequence
from typing import NamedTuple

GAP = -1


class Given(NamedTuple):
    """Such a list, without its first gap, which may be as long as any answer."""

    first: int = 0
    """How long that is."""
    tokens: tuple[int, ...] = ()

    @property
    def end_of_gaps(self) -> int:
        """One past the last gap."""
        return self.first + end_of_gaps(self.tokens)

    @property
    def suffix(self) -> tuple[int, ...]:
        """What follows the last gap."""
        return self.tokens[end_of_gaps(self.tokens) :]


NOTHING = Given()


def behind_prompt(
    canvas: Sequence[int], suffix: Sequence[int], max_tokens: int
) -> Given:
    """What a request gives whose answer has `max_tokens`.

    Args:
        canvas: what it says of every position, or nothing.
        suffix: what follows a canvas of which it says nothing.

    Raises:
        ValueError: if the answer does not end where the last gap does.
    """
    if not canvas:
        return Given(max_tokens, tuple(suffix)) if suffix else NOTHING
    if end_of_gaps(canvas) != max_tokens:
        raise ValueError(
            f"dllm_canvas_token_ids has its last -1 at position {end_of_gaps(canvas)}, "
            f"and the answer ends at {max_tokens}; allowed: a max_tokens of "
            f"{end_of_gaps(canvas)}, and a prompt that leaves so much of max_model_len"
        )
    ahead = next((i for i, token in enumerate(canvas) if token != GAP), len(canvas))
    return Given(ahead, tuple(canvas[ahead:]))


def end_of_gaps(given: Sequence[int]) -> int:
    """One past the last gap; 0 if there is none."""
    return next((i for i in range(len(given), 0, -1) if given[i - 1] == GAP), 0)


def most_gaps(given: Sequence[int], block: int) -> int:
    """How many positions of a block are decoded, at most."""
    parts = (given[i : i + block] for i in range(0, end_of_gaps(given), block))
    return max(part.count(GAP) for part in map(list, parts))
