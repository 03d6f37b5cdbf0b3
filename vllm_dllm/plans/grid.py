"""Where the diffusion blocks of a request lie."""

from math import lcm
from typing import NamedTuple

UNBOUNDED = 2**31 - 1
"""End of a grid that is extended as the request grows."""


class Grid(NamedTuple):
    """Where the diffusion blocks of a request lie."""

    origin: int
    """First position of the first block."""
    block: int
    """Length of a block; only the last one may be shorter."""
    end: int
    """One past the last position of the last block."""

    def start_of(self, known: int) -> int:
        """First position of the block that holds position `known`."""
        return self.origin + (known - self.origin) // self.block * self.block

    def end_of(self, known: int) -> int:
        """One past the last position of that block."""
        return min(self.start_of(known) + self.block, self.end)


class Sliding(Grid):
    """One block that goes along: it begins where the known tokens end."""

    def start_of(self, known: int) -> int:
        return known


def answer_grid(
    prompt: int, max_tokens: int, block: int, max_len: int, is_exact: bool = False
) -> Grid:
    """Blocks over the whole answer, from the end of the prompt on.

    The answer is rounded up to whole blocks; what lies past `max_tokens` is denoised
    and never handed out. One that `is_exact` is not. No block goes past `max_len`, and
    none is longer than what is between.
    """
    length = max_tokens if is_exact else round_up(max_tokens, block)
    end = min(prompt + length, max_len)
    return Grid(prompt, max(1, min(block, end - prompt)), end)


def round_up(length: int, block: int) -> int:
    """The end of the last block that a sequence of `length` tokens touches."""
    return -(-length // block) * block


def page_size(block: int, granularity: int) -> int:
    """Smallest KV page that holds whole blocks and suits the attention backend.

    Prefix caching shares whole pages, and the KV of a token is final only with its
    block, so a page must never end inside a block.
    """
    return lcm(block, granularity)
