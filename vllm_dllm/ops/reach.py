"""What grammars leave of a step: tokens, and positions that may be written.

On CPU by csrc/, elsewhere and without it in torch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.ops.extension import addresses, load_for

IN_CPP = torch.float32, torch.bfloat16
"""Types of logits."""


@dataclass
class Reach:
    """What the requests with a grammar may be written in a step."""

    has_bits: torch.Tensor
    """[m, width] bool: positions that bits were sent for, the first mask and those
    right of it; none in blocks of other requests."""
    forced: torch.Tensor
    """[m, width] bool: of these, the ones that have one token allowed."""
    assumed: torch.Tensor
    """[m, width] int64: the tokens for which the bits of later positions hold."""
    free: torch.Tensor | None = None
    """[m, vocab] bool: others for which they hold; None if no text is free."""

    def to_choose_from(self, candidate: torch.Tensor) -> torch.Tensor:
        """[m, width] bool: what a rule may be asked about. Forced tokens are no choice.

        Args:
            candidate: [m, width] int64.
        """
        native = load_for(candidate)
        if native is None:
            reached = self._reached(candidate)
            return ~self._follows | (reached & ~self.forced)
        found = torch.empty_like(self.has_bits)
        native.to_choose_from(*self._in_cpp, *addresses(candidate.contiguous(), found))
        return found

    def from_the_left(
        self, write: torch.Tensor, candidate: torch.Tensor
    ) -> torch.Tensor:
        """[m, width] bool: of `write`, what has no gap before it. The first choice is
        made whatever the rule says, and alone if the rule left it out.

        Args:
            write: [m, width] bool, the rule's answer; candidate: [m, width] int64.
        """
        native = load_for(candidate)
        if native is None:
            return self._from_the_left_torch(write, candidate)
        found = torch.empty_like(self.has_bits)
        given = candidate.contiguous(), write.contiguous()
        native.from_the_left(*self._in_cpp, *addresses(*given, found))
        return found

    def _from_the_left_torch(
        self, write: torch.Tensor, candidate: torch.Tensor
    ) -> torch.Tensor:
        """`from_the_left` in torch operations."""
        reached, follows = self._reached(candidate), self._follows
        chosen = reached & ~self.forced
        first = chosen & (chosen.cumsum(1) == 1)
        alone = (first & ~write).any(1, keepdim=True)
        gap = chosen & ~first & (alone | ~write)
        taken = reached & (gap.cumsum(1) == 0)
        return (follows & taken) | (~follows & write)

    def _reached(self, candidate: torch.Tensor) -> torch.Tensor:
        """[m, width] bool: positions whose bits hold, if all before them are written:
        those have their candidates as assumed."""
        other = self.has_bits & (candidate != self.assumed)
        if self.free is not None:
            other &= ~self.free.gather(1, candidate)
        return self.has_bits & (other.cumsum(1) <= other)

    @property
    def _follows(self) -> torch.Tensor:
        """[m, 1] bool: blocks of requests with a grammar."""
        return self.has_bits.any(1, keepdim=True)

    @property
    def _in_cpp(self) -> list[int]:
        """The same, as C++ takes it."""
        grids = addresses(self.has_bits, self.forced, self.assumed)
        vocab, free = 0, 0
        if self.free is not None:
            vocab, (free,) = self.free.shape[1], addresses(self.free)
        return [*self.has_bits.shape, vocab, free, *grids]


def exclude(
    logits: torch.Tensor,
    words: np.ndarray,
    places: np.ndarray,
    first: torch.Tensor,
    cell: tuple[torch.Tensor, torch.Tensor],
    width: int,
) -> Reach:
    """Leave the logits of some positions only the tokens that bits allow.

    Args:
        logits: [rows, vocab], of `cell`; changed in place.
        words: [k, n] int32, on the host: a bit for each token, those of a word from
            the lowest on.
        places: [3, k] int64, on the host: the block of each, how many columns it lies
            behind the first one of its canvas, and the token that is assumed there.
        first: [m] int64: that column, of each block.
        cell: [rows], [rows] int64: blocks and columns, in their order, in which are all
            the positions.
        width: columns.
    """
    native = load_for(logits)
    if native is None or logits.dtype not in IN_CPP or logits.stride(1) != 1:
        return _exclude_torch(logits, words, places, first, cell, width)
    shape, (rows, vocab) = (len(first), width), logits.shape
    reach = Reach(
        torch.empty(shape, dtype=torch.bool),
        torch.empty(shape, dtype=torch.bool),
        torch.empty(shape, dtype=torch.int64),
    )
    sizes = *words.shape, vocab, rows, *shape, logits.element_size(), logits.stride(0)
    given = torch.from_numpy(words), torch.from_numpy(places), first, *cell
    where = addresses(*given, reach.has_bits, reach.forced, reach.assumed)
    native.exclude(*sizes, logits.data_ptr(), *where)
    return reach


def _exclude_torch(
    logits: torch.Tensor,
    words: np.ndarray,
    places: np.ndarray,
    first: torch.Tensor,
    cell: tuple[torch.Tensor, torch.Tensor],
    width: int,
) -> Reach:
    """`exclude` in torch operations."""
    device, vocab = logits.device, logits.shape[1]
    block, ahead, token = async_tensor_h2d(places, device)
    column = first[block] + ahead
    row = torch.searchsorted(cell[0] * width + cell[1], block * width + column)
    banned = unpacked(~words, vocab, device)
    logits[row] = logits[row].masked_fill(banned, float("-inf"))
    # Of a signed word numpy counts the bits of its absolute value.
    count = np.bitwise_count(words.view(np.uint32)).sum(axis=1)
    assumed = first.new_zeros(len(first), width)
    has_bits, forced = (torch.zeros_like(assumed, dtype=torch.bool) for _ in range(2))
    has_bits[block, column] = True
    forced[block, column] = async_tensor_h2d(count == 1, device)
    assumed[block, column] = token
    return Reach(has_bits, forced, assumed)


def unpacked(words: np.ndarray, length: int, device: torch.device) -> torch.Tensor:
    """[rows, length] bool: bits, the lowest of each word first.

    words: [rows, n] of an integer type, on the host, with at least as many bits, or
        fewer: the rest are no.
    """
    words = words.view(np.uint8)
    if device.type != "cpu":
        return unpacked_torch(async_tensor_h2d(words, device), length)
    found = np.unpackbits(words, axis=1, count=length, bitorder="little")
    return torch.from_numpy(found.view(np.bool_))


def unpacked_torch(words: torch.Tensor, length: int) -> torch.Tensor:
    """`unpacked` in torch operations; words: [rows, n] uint8."""
    place = torch.arange(8, dtype=torch.uint8, device=words.device)
    found = (words.unsqueeze(2) >> place & 1).bool().flatten(1)[:, :length]
    return pad(found, (0, length - found.shape[1]))
