"""Logprobs of decoded tokens, kept from the step that decided them until they leave.

They are those of the model's own distribution (vLLM's `raw_logprobs`), without the
mask and what else is in no answer, at the step in which the position became the token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.outputs import LogprobsTensors

from vllm_dllm.worker.canvas_batch import CanvasBatch


@dataclass
class BlockLogprobs:
    """Of the blocks in flight of a request (`CanvasBatch.kept_at`); column 0 is the
    token itself, the others are the most likely, or those that it named."""

    token_ids: torch.Tensor
    """[positions, 1 + num_logprobs] int32."""
    logprobs: torch.Tensor
    """[positions, 1 + num_logprobs] float32."""
    ranks: torch.Tensor
    """[positions] int32; 1 is the most likely token."""
    named: torch.Tensor | None
    """[num_logprobs] int64: the tokens that the request wants to know of."""


class Logprobs:
    """Of the requests that asked for them, by slot. A `BlockState`."""

    def __init__(
        self, vocab: int, never_answered: Sequence[int], device: torch.device
    ) -> None:
        """`never_answered`: tokens that have no part in the distribution."""
        self.vocab = vocab
        self.never_answered = list(never_answered)
        self.device = device
        self.kept: dict[int, BlockLogprobs] = {}

    def add_request(self, slot: int, params: SamplingParams, positions: int) -> None:
        """`positions`: of the request's blocks in flight."""
        self.drop(slot)
        wanted = params.num_logprobs
        if wanted is not None:
            ids, named = params.logprob_token_ids, None
            if ids:
                named = async_tensor_h2d(np.array(ids), self.device)
            shape = (positions, 1 + (self.vocab if wanted == -1 else wanted))
            self.kept[slot] = BlockLogprobs(
                torch.zeros(shape, dtype=torch.int32, device=self.device),
                torch.zeros(shape, device=self.device),
                torch.zeros(positions, dtype=torch.int32, device=self.device),
                named,
            )

    def drop(self, slot: int) -> None:
        """Drop what is kept for a request that leaves its slot."""
        self.kept.pop(slot, None)

    def save(self, slot: int) -> BlockLogprobs | None:
        return self.kept.get(slot)

    def restore(self, slot: int, saved: BlockLogprobs | None) -> None:
        if saved is not None:
            self.kept[slot] = saved

    def record(
        self,
        logits: torch.Tensor,
        batch: CanvasBatch,
        write: torch.Tensor,
        candidate: torch.Tensor,
    ) -> None:
        """Keep the logprobs of the positions written in this step.

        Args:
            logits: [rows, vocab], those of `batch.cell`.
            write: [m, width] bool; candidate: [m, width] int64.
        """
        (block, column), kept_at = batch.cell, batch.kept_at
        for index, slot in enumerate(batch.slot_np.tolist()):
            kept = self.kept.get(slot)
            if kept is None:
                continue
            if batch.given is not None:
                # Nothing was decided there: the token itself, for sure.
                place = kept_at[index, batch.given[index]]
                given = batch.tokens[index, batch.given[index]]
                kept.token_ids[place] = given.int().unsqueeze(1)
                kept.logprobs[place], kept.ranks[place] = 0.0, 1
            rows = ((block == index) & write[block, column]).nonzero().squeeze(1)
            for row in rows.tolist():  # one row at a time is one float32 row at a time
                place = kept_at[index, column[row]]
                values = logits[row].float()
                values[self.never_answered] = float("-inf")
                logprobs = values.log_softmax(dim=0)
                token = candidate[index, column[row]]
                others = kept.named
                if others is None:
                    others = logprobs.topk(kept.logprobs.shape[1] - 1).indices
                shown = torch.cat([token.view(1), others])
                kept.token_ids[place] = shown.int()
                kept.logprobs[place] = logprobs[shown]
                kept.ranks[place] = (logprobs >= logprobs[token]).sum()

    def move(self, batch: CanvasBatch, source: torch.Tensor) -> None:
        """Let the logprobs of a position go where its token goes.

        source: [m, width] int64, as in `CanvasBatch.move`.
        """
        kept_at, column = batch.kept_at, source.clamp(min=0)
        for index, slot in enumerate(batch.slot_np.tolist()):
            if (kept := self.kept.get(slot)) is not None:
                place, old = kept_at[index], kept_at[index, column[index]]
                for values in (kept.token_ids, kept.logprobs, kept.ranks):
                    values[place] = values[old]

    def hand_out(
        self, batch: CanvasBatch, count: torch.Tensor
    ) -> LogprobsTensors | None:
        """Logprobs of the tokens that leave in this step; None if nobody wants any.

        count: [n] int32: tokens that leave, from the first column of the canvas on.
        """
        if not self.kept:
            return None
        slots = batch.spans.slot_np.tolist()
        wanted = [self.kept[slot] for slot in slots if slot in self.kept]
        if not wanted:
            return None
        width = max(kept.logprobs.shape[1] for kept in wanted)
        ids, values, ranks, starts = [], [], [], [0]
        for index, (slot, number) in enumerate(zip(slots, count.tolist(), strict=True)):
            kept = self.kept.get(slot)
            if kept is None:
                starts.append(starts[-1])
                continue
            columns = batch.canvas_of(index, batch.kept_at)[:number]
            missing = (0, width - kept.logprobs.shape[1])
            pad = torch.nn.functional.pad
            ids.append(pad(kept.token_ids[columns], missing))
            values.append(pad(kept.logprobs[columns], missing, value=float("-inf")))
            ranks.append(kept.ranks[columns])
            starts.append(starts[-1] + number)
        return LogprobsTensors(
            torch.cat(ids), torch.cat(values), torch.cat(ranks), starts
        )
