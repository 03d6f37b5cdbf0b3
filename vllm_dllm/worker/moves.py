"""Tokens that move others (`Moves`): proposed to rules that know them, and to no other.

To a rule that does not, such a token would be one like all others, and stand in an
answer.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.decoding.base import Moves
from vllm_dllm.ops.candidate import Candidates
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.changed_logits import Changed

Propose = Callable[[torch.Tensor, CanvasBatch], Candidates]
"""A candidate for each row of the logits of a batch's cells."""


def exclude_moves(logits: torch.Tensor, moves: Moves | None) -> Changed:
    """Take them from every row of [rows, vocab]."""
    if moves is None:
        return []
    columns = list(moves)
    own = logits[:, columns]
    logits[:, columns] = float("-inf")
    return [(slice(None), columns, own)]


def merged(still: Candidates, moving: Candidates, may_move: torch.Tensor) -> Candidates:
    """Of each row the candidate that its rule is to have.

    may_move: [rows] bool.
    """
    values: dict[str, Any] = {}
    for field in fields(Candidates):
        one, other = getattr(moving, field.name), getattr(still, field.name)
        values[field.name] = None if one is None else torch.where(may_move, one, other)
    return Candidates(**values)


def another_token(
    propose: Propose,
    logits: torch.Tensor,
    batch: CanvasBatch,
    is_mine: np.ndarray,
    column: torch.Tensor,
    taken: torch.Tensor,
) -> torch.Tensor:
    """`CanvasStep.another` for `n` of the blocks of a step.

    Args:
        logits: [rows, vocab], those of `batch.cell`.
        is_mine: [m] bool, on the CPU: which blocks these are.
    """
    if not len(logits):  # nothing of any block is decided
        return column
    width = batch.tokens.shape[1]
    mine = async_tensor_h2d(np.flatnonzero(is_mine), logits.device)
    block, place = batch.cell  # in the order of positions
    row = torch.searchsorted(block * width + place, mine * width + column)
    part = logits[row.clamp(max=len(logits) - 1)]
    # Not -inf: a request may allow no other tokens than these.
    excluded = torch.full_like(taken, torch.finfo(part.dtype).min, dtype=part.dtype)
    own = part.gather(1, taken.clamp(min=0))
    part.scatter_reduce_(
        1, taken.clamp(min=0), torch.where(taken < 0, own, excluded), "amin"
    )
    alone = replace(
        batch,
        cell=(mine, column),
        cell_position=batch.start[mine] + column,
        rows_np=is_mine.astype(np.int64),
    )
    return propose(part, alone).token
