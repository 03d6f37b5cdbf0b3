"""The blocks under denoising of a step: out of their slots, decided, and back.

On CPU by csrc/, elsewhere and without it in torch. `m` blocks of `width` columns; a
shorter one leaves columns unused.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from vllm_dllm.ops.extension import addresses, load_for


@dataclass(frozen=True)
class Tables:
    """What is kept of the blocks of each slot, int64; rows may lie apart."""

    tokens: torch.Tensor
    """[num_slots, positions]."""
    decided_at: torch.Tensor
    """[num_slots, positions]."""
    step: torch.Tensor
    """[num_slots, blocks in flight]."""
    post_steps: torch.Tensor
    """[num_slots, blocks in flight]."""

    @cached_property
    def rows(self) -> list[int]:
        """Addresses and row strides, as C++ takes them."""
        tables = self.tokens, self.decided_at, self.step, self.post_steps
        return [
            part for table in tables for part in (table.data_ptr(), table.stride(0))
        ]


class Kept(NamedTuple):
    """What `Tables` hold, of the blocks of a step."""

    tokens: torch.Tensor
    """[m, width] int64."""
    decided_at: torch.Tensor
    """[m, width] int64."""
    step: torch.Tensor
    """[m] int64."""
    post_steps: torch.Tensor
    """[m] int64."""


class Places(NamedTuple):
    """Where the blocks of a step are kept."""

    slot: torch.Tensor
    """[m] int64."""
    place: torch.Tensor | int
    """[m] int64: which of its slot's blocks it is; 0 where each request has one."""
    column: torch.Tensor | None
    """[m, width] int64: of each position; None where each is in its own."""

    @property
    def are_own(self) -> bool:
        """Whether a slot keeps one block, and each position in its own column."""
        return self.column is None and isinstance(self.place, int)


class Blocks(NamedTuple):
    """What was kept of the blocks of a step, and what it may decide of them."""

    tokens: torch.Tensor
    """[m, width] int64."""
    decided_at: torch.Tensor
    """[m, width] int64."""
    step: torch.Tensor
    """[m] int64."""
    post_steps: torch.Tensor
    """[m] int64: one more if an active block has no mask."""
    masked: torch.Tensor
    """[m, width] bool: masks of the canvas."""
    editable: torch.Tensor
    """[m, width] bool: the other positions of the canvas."""


def gather(
    tables: Tables,
    places: Places,
    known: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    active: torch.Tensor,
    width: int,
    mask_token_id: int,
) -> Blocks:
    """Look up blocks; the canvas of one begins at the known tokens of its request.

    Args:
        known, start, length: [m] int64: known tokens of the request, first position of
            the block, number of its positions.
        active: [m] bool: whether the step decides any of them.
    """
    native = load_for(active) if places.are_own else None
    of_blocks = known, start, length, active
    if native is None:
        return _gather_torch(tables, places, *of_blocks, width, mask_token_id)
    shape = active.shape[0], width
    found = Blocks(
        tokens=known.new_empty(shape),
        decided_at=known.new_empty(shape),
        step=torch.empty_like(known),
        post_steps=torch.empty_like(known),
        masked=active.new_empty(shape),
        editable=active.new_empty(shape),
    )
    arguments = addresses(places.slot, *of_blocks, *found)
    native.gather_blocks(*shape, mask_token_id, *tables.rows, *arguments)
    return found


def _gather_torch(
    tables: Tables,
    places: Places,
    known: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    active: torch.Tensor,
    width: int,
    mask_token_id: int,
) -> Blocks:
    slot, place, kept = places
    index = (slot, slice(width)) if kept is None else (slot.unsqueeze(1), kept)
    tokens, column = tables.tokens[index], torch.arange(width, device=slot.device)
    in_canvas = (
        active.unsqueeze(1)
        & (column >= (known - start).unsqueeze(1))
        & (column < length.unsqueeze(1))
    )
    is_mask = tokens == mask_token_id
    masked = in_canvas & is_mask
    return Blocks(
        tokens=tokens,
        decided_at=tables.decided_at[index],
        step=tables.step[slot, place],
        post_steps=tables.post_steps[slot, place] + (active & ~masked.any(dim=1)),
        masked=masked,
        editable=in_canvas & ~is_mask,
    )


def cells(
    wanted: torch.Tensor, start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Block, column and position of the wanted cells of a grid, in their order; each
    [rows] int64.

    Args:
        wanted: [m, width] bool; start: [m] int64: position of a block's first column.
    """
    native = load_for(wanted)
    if native is None or not wanted.is_contiguous():
        block, column = wanted.nonzero(as_tuple=True)
        return block, column, start[block] + column
    found = start.new_empty((3, wanted.numel()))
    count = native.cells(*wanted.shape, *addresses(wanted, start, found))
    block, column, position = found[:, :count].unbind()
    return block, column, position


def spread(
    cell: tuple[torch.Tensor, torch.Tensor], shape: torch.Size, *values: torch.Tensor
) -> list[torch.Tensor]:
    """Values of some cells -> grids of `shape`, [m, width], zeros elsewhere.

    Args:
        cell: block and column of each, [rows] int64.
        values: [rows] each.
    """
    native = load_for(cell[0])
    grids = []
    if native is None:
        for rows in values:
            grid = torch.zeros(shape, dtype=rows.dtype, device=rows.device)
            grid[cell] = rows
            grids.append(grid)
        return grids
    sizes, places = (*shape, cell[0].shape[0]), addresses(*cell)
    for rows in values:
        grid = rows.new_empty(shape)
        grids.append(grid)
        native.spread(*sizes, rows.element_size(), *places, *addresses(rows, grid))
    return grids


def write(
    where: torch.Tensor,
    candidate: torch.Tensor,
    step: torch.Tensor,
    tokens: torch.Tensor,
    masked: torch.Tensor,
    decided_at: torch.Tensor,
) -> None:
    """Make candidates the tokens of blocks, in place.

    Args:
        where: [m, width] bool; candidate: [m, width] int64.
        step: [m] int64: steps that the blocks have taken.
        tokens, masked, decided_at: as in `Blocks`; changed.
    """
    native = load_for(where)
    if native is not None and where.is_contiguous() and candidate.is_contiguous():
        arguments = addresses(where, candidate, step, tokens, masked, decided_at)
        native.write_tokens(*where.shape, *arguments)
        return
    tokens.copy_(torch.where(where, candidate, tokens))
    masked.logical_and_(~where)
    decided_at.copy_(torch.where(where, step.unsqueeze(1), decided_at))


@dataclass
class Leaving:
    """What leaves blocks in a step."""

    tokens: torch.Tensor
    """[m, width] int64, left-aligned."""
    count: torch.Tensor
    """[m]: how many of them leave."""
    finished: torch.Tensor
    """[m] bool: every token has."""


def leave(
    tokens: torch.Tensor,
    masked: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    may_leave: torch.Tensor,
) -> Leaving:
    """The tokens of blocks from the first one of their canvas to the first mask.

    Args:
        tokens, masked: as in `Blocks`.
        first, length: [m] int64: first column of the canvas, number of positions.
        may_leave: [m] bool: whether anything leaves.
    """
    native = load_for(masked)
    if native is None:
        column = torch.arange(tokens.shape[1], device=tokens.device)
        end = length.unsqueeze(1)
        first_mask = torch.where(masked, column, end).amin(dim=1).minimum(length)
        return Leaving(
            tokens=tokens.gather(1, (first.unsqueeze(1) + column) % len(column)),
            count=(first_mask - first) * may_leave,
            finished=may_leave & (first_mask == length),
        )
    found = Leaving(
        tokens=torch.empty_like(tokens),
        count=torch.empty_like(first),
        finished=torch.empty_like(may_leave),
    )
    given = addresses(tokens, masked, first, length, may_leave)
    taken = addresses(found.tokens, found.count, found.finished)
    native.leave(*tokens.shape, *given, *taken)
    return found


def hand_out(
    tables: Tables,
    places: Places,
    blocks: Kept,
    masked: torch.Tensor,
    known: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    active: torch.Tensor,
    done: torch.Tensor,
    max_len: torch.Tensor,
    mask_token_id: int,
) -> Leaving:
    """Hand out what is stable of blocks, each the only one of its request, and keep the
    rest.

    Args:
        masked, known, start, length, active: as in `gather`, after the step.
        done: [m] bool: decoded positions of the block are stable.
        max_len: [num_slots] int64: known tokens at which requests end.

    Returns:
        What leaves; `count`, int32, is no more than a request may have.
    """
    native = load_for(active) if places.are_own else None
    of_blocks = known, start, length, active, done
    if native is not None:
        found = Leaving(
            tokens=torch.empty_like(blocks.tokens),
            count=torch.empty_like(known, dtype=torch.int32),
            finished=torch.empty_like(active),
        )
        given = addresses(max_len, places.slot, *blocks, masked, *of_blocks)
        taken = addresses(found.tokens, found.count, found.finished)
        sizes = *masked.shape, mask_token_id
        native.hand_out(*sizes, *tables.rows, *given, *taken)
        return found
    first = known - start
    found = leave(blocks.tokens, masked, first, length, active & done)
    left = first + found.count
    store(tables, places, blocks, masked, active, left, found.finished, mask_token_id)
    room = max_len[places.slot] - known
    found.count = found.count.minimum(room).int()
    return found


def store(
    tables: Tables,
    places: Places,
    blocks: Kept,
    masked: torch.Tensor,
    taken: torch.Tensor,
    left: torch.Tensor,
    finished: torch.Tensor,
    mask_token_id: int,
) -> None:
    """Keep blocks after a step; what has left makes room for masks.

    Args:
        masked: [m, width] bool.
        taken: [m] bool: whether the step was one of theirs.
        left: [m] int64: the first column that has not left.
        finished: as in `Leaving`.
    """
    slot, place, kept = places
    column = torch.arange(masked.shape[1], device=slot.device)
    index = (slot, slice(len(column))) if kept is None else (slot.unsqueeze(1), kept)
    is_mask = masked | (column < left.unsqueeze(1))
    tables.tokens[index] = blocks.tokens.masked_fill(is_mask, mask_token_id)
    tables.decided_at[index] = blocks.decided_at
    tables.step[slot, place] = (blocks.step + taken).masked_fill(finished, 0)
    tables.post_steps[slot, place] = blocks.post_steps.masked_fill(finished, 0)
