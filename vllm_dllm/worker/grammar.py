"""Structured output: what a grammar allows at the next position of an answer.

vLLM keeps the grammars in the engine's process, moves them along the tokens that were
handed out, and sends which tokens may follow. A request with a grammar is decoded from
left to right (request.py), so its known tokens are all that is decoded, and what may
follow them is for its first mask.
"""

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import GrammarOutput

from vllm_dllm.worker.canvas_batch import CanvasBatch


def exclude_ungrammatical(
    logits: torch.Tensor,
    batch: CanvasBatch,
    grammar: GrammarOutput,
    req_ids: list[str],
    num_drafts: np.ndarray,
) -> None:
    """Leave the first masks of requests with a grammar only the tokens it allows.

    Not by xgrammar's kernel: it wants the rows on the CPU, and which they are is known
    on the device alone.

    Args:
        logits: [rows, vocab], those of `batch.cell`; changed in place.
        req_ids: of the batch.
        num_drafts: [num_reqs], on the CPU: positions of the canvas that vLLM was told
            of.
    """
    index_of = {req_id: index for index, req_id in enumerate(req_ids)}
    ids = grammar.structured_output_request_ids
    index = np.array([index_of[req_id] for req_id in ids])
    rows = _rows_of_bits(grammar, num_drafts[index])
    has_canvas = num_drafts[index] > 0
    if not has_canvas.any():
        return
    places, index = (rows.cumsum() - rows)[has_canvas], index[has_canvas]
    device, vocab = logits.device, logits.shape[1]
    bits = async_tensor_h2d(grammar.grammar_bitmask[places], device)
    bit = torch.arange(32, dtype=torch.int32, device=device)
    allowed = (bits.unsqueeze(2) >> bit & 1).bool().flatten(1)[:, :vocab]
    row = _rows_of_first_masks(batch, async_tensor_h2d(index, device))
    logits[row] = logits[row].masked_fill(~allowed, float("-inf"))


def _rows_of_bits(grammar: GrammarOutput, num_drafts: np.ndarray) -> np.ndarray:
    """[requests with a grammar] int: how many rows of bits each has been sent; the
    first is that of its next token.

    One for each position of the canvas that vLLM was told of, and one for a request
    without any; from vLLM 0.33 on, as many for each as there can be.
    """
    rows = np.maximum(num_drafts, 1)
    if rows.sum() != len(grammar.grammar_bitmask):
        rows[:] = len(grammar.grammar_bitmask) // len(rows)
    return rows


def _rows_of_first_masks(batch: CanvasBatch, index: torch.Tensor) -> torch.Tensor:
    """[m] int64: the rows of logits of the first canvas positions of some requests.

    These have a row in every step: with shifted logits, a refresh decides the first
    position of a block, and later steps begin after it.

    Args:
        index: [m] int64, requests of the batch.
    """
    width, rows = batch.tokens.shape[1], batch.spans.rows
    block, column = batch.cell  # in the order of positions
    first = index if rows is None else rows.begin[index]
    return torch.searchsorted(
        block * width + column, first * width + batch.first[first]
    )
