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

from vllm_dllm.ops.reach import Reach, exclude, unpacked
from vllm_dllm.runs import NO_RUN, PADDING, Run
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.spans.block_rows import BlockRows


@dataclass
class Bits:
    """The rows of bits that were sent for a step; a list of each has one for a row."""

    rows: BlockRows | None
    """Of the step."""
    words: list[np.ndarray] = field(default_factory=list)
    """[rows, words] int32 each."""
    block: list[int] = field(default_factory=list)
    """Index in the batch of the first one of its request."""
    ahead: list[int] = field(default_factory=list)
    """Positions from the first mask on."""
    assumed: list[int] = field(default_factory=list)
    """The token of the run there."""

    def add(self, request: int, words: np.ndarray, tokens: Sequence[int]) -> None:
        """Add the rows of a request, whose run may end before the last of them."""
        count, block = len(words), first_block(self.rows, request)
        self.words.append(words)
        self.block += [block] * count
        self.ahead += range(count)
        self.assumed += tokens[:count]
        self.assumed += [PADDING] * (count - len(tokens))

    @property
    def places(self) -> np.ndarray:
        """As `ops.reach.exclude` wants them."""
        return np.array([self.block, self.ahead, self.assumed])


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
    runs, sent = batch.spans.runs or [NO_RUN] * len(req_ids), Bits(batch.spans.rows)
    for index, run in enumerate(runs):
        if run.bits is not None:
            sent.add(index, run.bits, run.tokens)
    if grammar is not None:
        _add_those_of_vllm(sent, grammar, req_ids, runs, num_drafts.tolist())
    if not sent.words:
        return None
    words, width = np.concatenate(sent.words), batch.tokens.shape[1]
    reach = exclude(logits, words, sent.places, batch.first, batch.cell, width)
    reach.free = _free_tokens(runs, batch, logits.shape[1])
    return reach


def first_block(rows: BlockRows | None, request: int) -> int:
    """Index in the batch of the first block of a request."""
    return request if rows is None else int(rows.begin_np[request])


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


def _free_tokens(
    runs: list[Run], batch: CanvasBatch, vocab: int
) -> torch.Tensor | None:
    """`Reach.free`."""
    found = [(i, run.free) for i, run in enumerate(runs) if run.free is not None]
    if not found:
        return None
    device, rows = batch.tokens.device, batch.spans.rows
    block = async_tensor_h2d(np.array([first_block(rows, i) for i, _ in found]), device)
    free = batch.masked.new_zeros(len(batch.slot), vocab)
    free[block] = unpacked(np.stack([bits for _, bits in found]), vocab, device)
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
