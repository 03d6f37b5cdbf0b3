"""Logprobs of decoded tokens, kept from the step that decided them until they leave.

They are those of the model's own distribution (vLLM's `raw_logprobs`), without the
mask, at the step in which the position became the token.
"""

from dataclasses import dataclass

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import LogprobsTensors

from vllm_dllm.worker.canvas import CanvasBatch


@dataclass
class BlockLogprobs:
    """Of one block; column 0 is the token itself, the others are the most likely."""

    token_ids: torch.Tensor
    """[block, 1 + num_logprobs] int32."""
    logprobs: torch.Tensor
    """[block, 1 + num_logprobs] float32."""
    ranks: torch.Tensor
    """[block] int32; 1 is the most likely token."""


class Logprobs:
    """Of the requests that asked for them, by slot."""

    def __init__(self, vocab: int, mask_token_id: int, device: torch.device) -> None:
        self.vocab = vocab
        self.mask_token_id = mask_token_id
        self.device = device
        self.kept: dict[int, BlockLogprobs] = {}
        self._suspended: dict[str, BlockLogprobs] = {}

    def add_request(
        self, req_id: str, slot: int, params: SamplingParams, block: int
    ) -> None:
        """`block`: length of the request's blocks."""
        self.kept.pop(slot, None)
        if (saved := self._suspended.pop(req_id, None)) is not None:
            self.kept[slot] = saved
        elif params.logprobs is not None:
            wanted = self.vocab if params.logprobs == -1 else params.logprobs
            shape = (block, 1 + wanted)
            self.kept[slot] = BlockLogprobs(
                torch.zeros(shape, dtype=torch.int32, device=self.device),
                torch.zeros(shape, device=self.device),
                torch.zeros(block, dtype=torch.int32, device=self.device),
            )

    def suspend(self, req_id: str, slot: int) -> None:
        """Keep what belongs to a half-decoded block (see Canvas.suspend)."""
        if slot in self.kept:
            self._suspended[req_id] = self.kept.pop(slot)

    def forget(self, req_id: str) -> None:
        """Drop what was kept for a request that has ended."""
        self._suspended.pop(req_id, None)

    def record(
        self,
        logits: torch.Tensor,
        batch: CanvasBatch,
        write: torch.Tensor,
        candidate: torch.Tensor,
        slots: list[int],
    ) -> None:
        """Keep the logprobs of the positions written in this step.

        Args:
            logits: [rows, vocab], those of `batch.cell`.
            write: [n, width] bool; candidate: [n, width] int64.
            slots: of the batch.
        """
        request, column = batch.cell
        for index, slot in enumerate(slots):
            kept = self.kept.get(slot)
            if kept is None:
                continue
            rows = ((request == index) & write[request, column]).nonzero().squeeze(1)
            for row in rows.tolist():  # one row at a time is one float32 row at a time
                place = column[row]
                values = logits[row].float()
                values[self.mask_token_id] = float("-inf")
                logprobs = values.log_softmax(dim=0)
                token = candidate[index, place]
                top = logprobs.topk(kept.logprobs.shape[1] - 1)
                kept.token_ids[place] = torch.cat([token.view(1), top.indices]).int()
                kept.logprobs[place] = torch.cat([logprobs[token].view(1), top.values])
                kept.ranks[place] = (logprobs >= logprobs[token]).sum()

    def hand_out(
        self, slots: list[int], first: list[int], count: list[int]
    ) -> LogprobsTensors | None:
        """Logprobs of the tokens that leave in this step.

        Args:
            slots: of the batch.
            first, count: per request, columns first .. first + count of its block.
        """
        if not any(slot in self.kept for slot in slots):
            return None
        ids, values, ranks, starts = [], [], [], [0]
        width = max(k.logprobs.shape[1] for s, k in self.kept.items() if s in slots)
        for slot, begin, number in zip(slots, first, count, strict=True):
            kept = self.kept.get(slot)
            if kept is None:
                starts.append(starts[-1])
                continue
            columns = slice(begin, begin + number)
            missing = (0, width - kept.logprobs.shape[1])
            pad = torch.nn.functional.pad
            ids.append(pad(kept.token_ids[columns], missing))
            values.append(pad(kept.logprobs[columns], missing, value=float("-inf")))
            ranks.append(kept.ranks[columns])
            starts.append(starts[-1] + number)
        return LogprobsTensors(
            torch.cat(ids), torch.cat(values), torch.cat(ranks), starts
        )
