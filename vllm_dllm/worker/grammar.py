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

from vllm_dllm.worker.canvas import CanvasBatch


def exclude_ungrammatical(
    logits: torch.Tensor,
    batch: CanvasBatch,
    grammar: GrammarOutput,
    req_ids: list[str],
    num_drafts: np.ndarray,
) -> None:
    """Leave the first masks of requests with a grammar only the tokens it allows.

    Args:
        logits: [rows, vocab], those of `batch.cell`; changed in place.
        req_ids: of the batch.
        num_drafts: [num_reqs], on the CPU: positions of the canvas that vLLM was told
            of. It has sent a row of bits for each, and one for a request without any;
            the first is that of the next token.
    """
    index_of = {req_id: index for index, req_id in enumerate(req_ids)}
    indices, places, place = [], [], 0
    for req_id in grammar.structured_output_request_ids:
        index = index_of[req_id]
        if num_drafts[index]:
            indices.append(index)
            places.append(place)
        place += max(1, int(num_drafts[index]))
    if not indices:
        return
    device, vocab = logits.device, logits.shape[1]
    bits = async_tensor_h2d(grammar.grammar_bitmask[places], device)
    bit = torch.arange(32, dtype=torch.int32, device=device)
    allowed = (bits.unsqueeze(2) >> bit & 1).bool().flatten(1)[:, :vocab]
    row = _rows_of_first_masks(batch, async_tensor_h2d(indices, device, torch.int64))
    logits[row] = logits[row].masked_fill(~allowed, float("-inf"))


def _rows_of_first_masks(batch: CanvasBatch, index: torch.Tensor) -> torch.Tensor:
    """[m] int64: the rows of logits of the first canvas positions of some requests.

    Args:
        index: [m] int64, requests of the batch.
    """
    width = batch.tokens.shape[1]
    request, column = batch.cell  # in the order of positions
    return torch.searchsorted(
        request * width + column, index * width + batch.first[index]
    )
