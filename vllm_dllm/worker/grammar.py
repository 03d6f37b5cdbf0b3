"""Structured output: what a grammar allows, and how much of an answer a step may write.

vLLM keeps the grammars in the engine's process, moves them along the tokens that were
handed out, and sends what may follow: bits for the next position, and for those behind
it that the assumptions of a run reach (runs.py). Answers are written from left to
right: each position by the bits of what was assumed before it, if that is what came.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import GrammarOutput

from vllm_dllm.runs import Run
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.spans.batch import SpanBatch


@dataclass
class Reach:
    """What the requests with a grammar may be written in a step."""

    follows: torch.Tensor
    """[m, 1] bool: blocks of requests with a grammar."""
    has_bits: torch.Tensor
    """[m, width] bool: positions that bits were sent for, the first mask and those
    right of it."""
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
        return ~self.follows | (self._reached(candidate) & ~self.forced)

    def from_the_left(
        self, write: torch.Tensor, candidate: torch.Tensor
    ) -> torch.Tensor:
        """[m, width] bool: of `write`, what has no gap before it. The first choice is
        made whatever the rule says, and alone if the rule left it out.

        Args:
            write: [m, width] bool, the rule's answer; candidate: [m, width] int64.
        """
        reached = self._reached(candidate)
        chosen = reached & ~self.forced
        first = chosen & (chosen.cumsum(dim=1) == 1)
        alone = (first & ~write).any(dim=1, keepdim=True)
        gap = chosen & ~first & (alone | ~write)
        return torch.where(self.follows, reached & (gap.cumsum(dim=1) == 0), write)

    def _reached(self, candidate: torch.Tensor) -> torch.Tensor:
        """[m, width] bool: positions whose bits hold, if all before them are written:
        those have their candidates as assumed."""
        other = self.has_bits & (candidate != self.assumed)
        if self.free is not None:
            other &= ~self.free.gather(1, candidate)
        return self.has_bits & (other.cumsum(dim=1) - other.long() == 0)


def exclude_ungrammatical(
    logits: torch.Tensor,
    batch: CanvasBatch,
    grammar: GrammarOutput,
    req_ids: list[str],
    num_drafts: np.ndarray,
) -> Reach | None:
    """Leave the positions that bits were sent for only the tokens that these allow.

    Not by xgrammar's kernel: it wants the rows on the CPU, and which they are is known
    on the device alone.

    Args:
        logits: [rows, vocab], those of `batch.cell`; changed in place.
        req_ids: of the batch.
        num_drafts: [num_reqs], on the CPU: positions of the canvas that vLLM was told
            of.

    Returns:
        What may be written; None if no request with a grammar has a canvas.
    """
    index_of = {req_id: index for index, req_id in enumerate(req_ids)}
    ids = grammar.structured_output_request_ids
    index = np.array([index_of[req_id] for req_id in ids])
    runs = batch.spans.runs or [Run()] * len(req_ids)
    lengths = np.array([len(runs[i].tokens) for i in index.tolist()])
    sent = _rows_of_bits(grammar, num_drafts[index], lengths)
    is_free = np.array([runs[i].free is not None for i in index.tolist()])
    assumed = [
        [*runs[i].tokens, *[-1] * (num_drafts[i] if alike else 1)][: num_drafts[i]]
        for i, alike in zip(index.tolist(), is_free.tolist(), strict=True)
    ]
    count = np.array([len(tokens) for tokens in assumed])
    if not count.any():
        return None
    offset = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    places = np.repeat(sent.cumsum() - sent, count)
    places += np.where(np.repeat(is_free, count), 0, offset)
    of_rows = np.stack([np.repeat(index, count), offset, np.concatenate(assumed)])
    of_rows = of_rows.astype(np.int64)
    device, vocab = logits.device, logits.shape[1]
    words = grammar.grammar_bitmask[places]
    begins = (count.cumsum() - count).tolist()
    spelled = [
        begin + ahead
        for i, begin in zip(index.tolist(), begins, strict=True)
        for ahead in runs[i].spelled
    ]
    if spelled:
        _allow_one(words, spelled, of_rows[2])
    bits = async_tensor_h2d(words, device)
    bit = torch.arange(32, dtype=torch.int32, device=device)
    allowed = (bits.unsqueeze(2) >> bit & 1).bool().flatten(1)[:, :vocab]
    request, ahead, token = async_tensor_h2d(of_rows, device)
    rows = batch.spans.rows
    block = request if rows is None else rows.begin[request]
    cell = block, batch.first[block] + ahead
    row = _rows_of(batch, *cell)
    logits[row] = logits[row].masked_fill(~allowed, float("-inf"))
    nowhere = torch.zeros_like(batch.masked)
    return Reach(
        follows=nowhere[:, :1].index_fill(0, block, True),
        has_bits=nowhere.index_put(cell, torch.ones_like(block, dtype=torch.bool)),
        forced=nowhere.index_put(cell, allowed.sum(dim=1) == 1),
        assumed=torch.zeros_like(batch.tokens).index_put(cell, token),
        free=_free_tokens(runs, batch, vocab),
    )


def _allow_one(
    words: npt.NDArray[np.int32], where: list[int], token: npt.NDArray[np.int64]
) -> None:
    """Let some rows of bits allow one token each.

    Args:
        words: [rows, vocab / 32], changed in place.
        where: which of the rows; token: [rows].
    """
    only = token[where]
    words[where] = 0
    bit = (1 << only % 32).astype(np.uint32)
    words[where, only // 32] = bit.view(np.int32)


def _free_tokens(
    runs: list[Run], batch: CanvasBatch, vocab: int
) -> torch.Tensor | None:
    """`Reach.free`."""
    found = [(i, run.free) for i, run in enumerate(runs) if run.free is not None]
    if not found:
        return None
    device, rows = batch.tokens.device, batch.spans.rows
    request = async_tensor_h2d(np.array([i for i, _ in found]), device)
    bits = async_tensor_h2d(np.stack([bits for _, bits in found]), device)
    bit = torch.arange(8, dtype=torch.uint8, device=device)
    some = (bits.unsqueeze(2) >> bit & 1).bool().flatten(1)[:, :vocab]
    free = some.new_zeros(len(batch.slot), vocab)
    free[request if rows is None else rows.begin[request], : some.shape[1]] = some
    return free


def show_forced(spans: SpanBatch, all_token_ids: torch.Tensor) -> None:
    """Show the model the tokens that grammars force at the start of a canvas: they cost
    no forward, and what comes after them is decided as if they were known.

    Not in a step whose keys are read later: made again, they would be others.

    Args:
        all_token_ids: [num_slots, max_len], known tokens of all slots; what lies right
            of them is written.
    """
    forced = np.array([run.forced for run in spans.runs or []])
    if not forced.any():
        return
    request = np.repeat(np.arange(len(forced)), forced)
    offset = np.arange(forced.sum()) - np.repeat(forced.cumsum() - forced, forced)
    tokens = [token for run in spans.runs or [] for token in run.tokens[: run.forced]]
    of_tokens = np.stack([request, offset, tokens]).astype(np.int64)
    index, ahead, token = async_tensor_h2d(of_tokens, all_token_ids.device)
    place = spans.slot[index], spans.known[index] + ahead
    all_token_ids[place] = token.to(all_token_ids.dtype)
    shown = async_tensor_h2d(forced.astype(np.int64), all_token_ids.device)
    shows = spans.decides if spans.keeps is None else spans.decides & ~spans.keeps
    spans.shown = spans.shown + shown * shows


def _rows_of_bits(
    grammar: GrammarOutput, num_drafts: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """[requests with a grammar] int: how many rows of bits each has been sent; the
    first is that of its next token.

    One for each position of its run and one more, as far as there is a canvas; one for
    a request without any; from vLLM 0.33 on, as many for each as there can be.

    Args:
        lengths: of the runs.
    """
    rows = np.maximum(np.minimum(num_drafts, lengths + 1), 1)
    if rows.sum() != len(grammar.grammar_bitmask):
        rows[:] = len(grammar.grammar_bitmask) // len(rows)
    return rows


def _rows_of(
    batch: CanvasBatch, block: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    """[m] int64: the rows of logits of some masks of canvases that are nothing else.

    These have a row in every step: with shifted logits, a refresh decides the first
    position of a block, and later steps begin after it.

    Args:
        block, column: [m] int64, index into the batch's blocks.
    """
    width = batch.tokens.shape[1]
    of_rows, columns = batch.cell  # in the order of positions
    return torch.searchsorted(of_rows * width + columns, block * width + column)
