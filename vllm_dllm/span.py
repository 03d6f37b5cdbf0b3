"""Span arithmetic: which tokens a step forwards, and which become final by it.

Pure functions shared by the scheduler (one process) and the worker (another), so that
the two cannot disagree. No torch, no vLLM. Vocabulary: docs/architecture.md.

All positions are absolute token positions of one request; `block` is the diffusion
block size; the block grid starts at position 0.
"""

from math import lcm
from typing import NamedTuple


class Span(NamedTuple):
    """One contiguous run of positions forwarded in one step."""

    start: int
    """First position; everything before it has final KV. A multiple of `block`."""
    end: int
    """One past the last position. A multiple of `block`."""
    canvas: int
    """How many of the last positions are canvas. 0 for a prefill chunk."""

    @property
    def length(self) -> int:
        return self.end - self.start


def canvas_length(known: int, block: int) -> int:
    """Number of canvas positions after `known` known tokens: 1..block."""
    return block - known % block


def full_span(computed: int, known: int, block: int) -> Span:
    """The span a request wants: all known tokens without final KV, then the canvas.

    `computed` is a multiple of `block` and at most `known`.
    """
    canvas = canvas_length(known, block)
    return Span(computed, known + canvas, canvas)


def clip(span: Span, budget: int, block: int) -> Span:
    """The longest useful part of `span` with at most `budget` positions.

    A canvas is forwarded whole or not at all, and a chunk without it ends on a block
    border, since the tokens of a block see each other. The result may be empty.
    """
    if span.length <= budget:
        return span
    return Span(span.start, span.start + budget // block * block, 0)


def committed(span: Span, block: int) -> int:
    """Number of tokens with final KV after `span` was forwarded.

    A block is final when it went through the model with nothing but known tokens.
    """
    return (span.end - span.canvas) // block * block


def round_up(length: int, block: int) -> int:
    """The end of the last block that a sequence of `length` tokens touches."""
    return -(-length // block) * block


def page_size(block: int, granularity: int) -> int:
    """Smallest KV page that holds whole blocks and suits the attention backend.

    Prefix caching shares whole pages, and the KV of a token is final only with its
    block, so a page must never end inside a block.
    """
    return lcm(block, granularity)
