"""Structured output: what a grammar allows, and how much of an answer a step may write.

The engine's process keeps the grammars, moves them along the tokens that were handed
out, and sends what may follow: bits for the next position, and for those behind it that
the assumptions of a run reach (runs.py). Answers are written from left to right: each
position by the bits of what was assumed before it, if that is what came.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import GrammarOutput

from vllm_dllm.ops.near import Array, brought, near, picked, searchsorted, unpacked
from vllm_dllm.runs import PADDING, Run
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.spans.batch import SpanBatch


@dataclass
class Reach:
    """What the requests with a grammar may be written in a step."""

    follows: Array
    """[m, 1] bool: blocks of requests with a grammar."""
    has_bits: Array
    """[m, width] bool: positions that bits were sent for, the first mask and those
    right of it."""
    forced: Array
    """[m, width] bool: of these, the ones that have one token allowed."""
    assumed: Array
    """[m, width] int64: the tokens for which the bits of later positions hold."""
    free: Array | None = None
    """[m, vocab] bool: others for which they hold; None if no text is free."""

    @property
    def is_forced(self) -> torch.Tensor:
        """`forced`."""
        return torch.as_tensor(self.forced)

    def to_choose_from(self, candidate: torch.Tensor) -> torch.Tensor:
        """[m, width] bool: what a rule may be asked about. Forced tokens are no choice.

        Args:
            candidate: [m, width] int64.
        """
        reached = self._reached(near(candidate))
        return torch.as_tensor(~self.follows | (reached & ~self.forced))

    def from_the_left(
        self, write: torch.Tensor, candidate: torch.Tensor
    ) -> torch.Tensor:
        """[m, width] bool: of `write`, what has no gap before it. The first choice is
        made whatever the rule says, and alone if the rule left it out.

        Args:
            write: [m, width] bool, the rule's answer; candidate: [m, width] int64.
        """
        wanted, reached = near(write), self._reached(near(candidate))
        chosen = reached & ~self.forced
        first = chosen & (chosen.cumsum(1) == 1)
        alone = (first & ~wanted).any(1)[:, None]
        gap = chosen & ~first & (alone | ~wanted)
        taken = reached & (gap.cumsum(1) == 0)
        return torch.as_tensor((self.follows & taken) | (~self.follows & wanted))

    def _reached(self, candidate: Array) -> Array:
        """[m, width] bool: positions whose bits hold, if all before them are written:
        those have their candidates as assumed."""
        other = self.has_bits & (candidate != self.assumed)
        if self.free is not None:
            other &= ~picked(self.free, candidate)
        return self.has_bits & (other.cumsum(1) <= other)


@dataclass
class Bits:
    """The rows of bits that were sent for a step; a list of each has one for a row."""

    words: list[np.ndarray] = field(default_factory=list)
    """[rows, words] int32 each."""
    request: list[int] = field(default_factory=list)
    """Index in the batch."""
    ahead: list[int] = field(default_factory=list)
    """Positions from the first mask on."""
    assumed: list[int] = field(default_factory=list)
    """The token of the run there."""

    def add(self, request: int, words: np.ndarray, tokens: Sequence[int]) -> None:
        """Add the rows of a request, whose run may end before the last of them."""
        count = len(words)
        self.words.append(words)
        self.request += [request] * count
        self.ahead += range(count)
        self.assumed += tokens[:count]
        self.assumed += [PADDING] * (count - len(tokens))


def exclude_ungrammatical(
    logits: torch.Tensor,
    batch: CanvasBatch,
    grammar: GrammarOutput | None,
    req_ids: list[str],
    num_drafts: np.ndarray,
) -> Reach | None:
    """Leave the positions that bits were sent for only the tokens that these allow.

    Not by xgrammar's kernel: it wants the rows on the CPU, and which they are is known
    on the device alone.

    Args:
        logits: [rows, vocab], those of `batch.cell`; changed in place.
        grammar: the bits that vLLM sent, if it sent any.
        req_ids: of the batch.
        num_drafts: [num_reqs], on the CPU: positions of the canvas that vLLM was told
            of.

    Returns:
        What may be written; None if no request with a grammar has a canvas.
    """
    runs, sent = batch.spans.runs or [Run()] * len(req_ids), Bits()
    for index, run in enumerate(runs):
        if run.bits is not None:
            sent.add(index, run.bits, run.tokens)
    if grammar is not None:
        _add_those_of_vllm(sent, grammar, req_ids, runs, num_drafts.tolist())
    if not sent.words:
        return None
    device, vocab, rows = logits.device, logits.shape[1], batch.spans.rows
    words = np.concatenate(sent.words)
    of_rows = np.array([sent.request, sent.ahead, sent.assumed])
    request, ahead, token = brought(of_rows, device)
    is_forced = brought(np.bitwise_count(words).sum(axis=1) == 1, device)
    block = request if rows is None else near(rows.begin)[request]
    cell = block, near(batch.first)[block] + ahead
    row = torch.as_tensor(_rows_of(batch, *cell))
    banned = torch.as_tensor(unpacked(~words, vocab, device))
    logits[row] = logits[row].masked_fill(banned, float("-inf"))
    has_bits, forced = (near(torch.zeros_like(batch.masked)) for _ in range(2))
    assumed = near(torch.zeros_like(batch.tokens))
    has_bits[cell], forced[cell], assumed[cell] = True, is_forced, token
    free = _free_tokens(runs, batch, vocab)
    return Reach(has_bits.any(1)[:, None], has_bits, forced, assumed, free)


def _add_those_of_vllm(
    sent: Bits,
    grammar: GrammarOutput,
    req_ids: list[str],
    runs: list[Run],
    num_drafts: list[int],
) -> None:
    """The first row of a request is that of its next token.

    There is one for each position of its run and one more, as far as there is a canvas;
    one for a request without any; from vLLM 0.33 on, as many for each as there can be.
    Of free text the first one holds for all positions.
    """
    bits, begin = grammar.grammar_bitmask, 0
    index_of = {req_id: index for index, req_id in enumerate(req_ids)}
    of_grammar = [index_of[req_id] for req_id in grammar.structured_output_request_ids]
    told = [min(len(runs[i].tokens) + 1, num_drafts[i]) for i in of_grammar]
    sizes = [max(1, count) for count in told]
    if sum(sizes) != len(bits):
        sizes = [len(bits) // len(sizes)] * len(sizes)
    for index, count, size in zip(of_grammar, told, sizes, strict=True):
        words = bits[begin : begin + count]
        if runs[index].free is not None:
            words = words.repeat(num_drafts[index], axis=0)
        if count:
            sent.add(index, words, runs[index].tokens)
        begin += size


def _free_tokens(runs: list[Run], batch: CanvasBatch, vocab: int) -> Array | None:
    """`Reach.free`."""
    found = [(i, run.free) for i, run in enumerate(runs) if run.free is not None]
    if not found:
        return None
    device, rows = batch.tokens.device, batch.spans.rows
    request = brought(np.array([i for i, _ in found]), device)
    some = unpacked(np.stack([bits for _, bits in found]), vocab, device)
    free = near(batch.masked.new_zeros(len(batch.slot), vocab))
    free[request if rows is None else near(rows.begin)[request]] = some
    return free


def show_forced(spans: SpanBatch, all_token_ids: torch.Tensor) -> None:
    """Show the model the tokens that grammars force at the start of a canvas: they cost
    no forward, and what comes after them is decided as if they were known.

    Not in a step whose keys are read later: made again, they would be others.

    Args:
        all_token_ids: [num_slots, max_len], known tokens of all slots; what lies right
            of them is written.
    """
    lengths = [run.forced for run in spans.runs or []]
    if not any(lengths):
        return
    forced = np.array(lengths)
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


def _rows_of(batch: CanvasBatch, block: Array, column: Array) -> Array:
    """[m] int64: the rows of logits of some masks of canvases that are nothing else.

    These have a row in every step: with shifted logits, a refresh decides the first
    position of a block, and later steps begin after it.

    Args:
        block, column: [m] int64, index into the batch's blocks.
    """
    width = batch.tokens.shape[1]
    of_rows, columns = map(near, batch.cell)  # in the order of positions
    return searchsorted(of_rows * width + columns, block * width + column)
