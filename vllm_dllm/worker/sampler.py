"""DenoisingSampler: logits -> candidates -> rule -> canvas -> emitted tokens."""

from typing import cast

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from vllm_dllm.decoding.base import CanvasStep, ReshapingRule
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.ops.candidate import Candidates, candidates
from vllm_dllm.worker.canvas import Canvas, CanvasBatch
from vllm_dllm.worker.logprobs import Logprobs
from vllm_dllm.worker.sampling import Sampling


class NoPenalties:
    """The runner counts output tokens for penalties unless there is no table."""

    output_bin_counts = None


class DenoisingSampler:
    """Takes the place of vLLM's sampler for a whole batch of canvases.

    A step is `gather`, then the model's logits of the gathered rows, then `denoise`.
    """

    penalties_state = NoPenalties()

    def __init__(
        self, sampler: Sampler, canvas: Canvas, sampling: Sampling, logprobs: Logprobs
    ) -> None:
        self.sampling_states = sampler.sampling_states
        self.req_states = sampler.req_states
        self.canvas = canvas
        self.sampling = sampling
        self.logprobs = logprobs
        self.trajectories: dict[str, list[int]] = {}
        """Request id -> steps that decided the tokens handed out in the last step."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """Requests are added with their ids and lengths (model_state.add_request)."""

    def apply_staged_writes(self) -> None:
        """Nothing is staged: requests are added between steps, on one stream."""

    def __call__(self, logits: torch.Tensor, input_batch: InputBatch) -> SamplerOutput:
        """The memory of a step, for vLLM's profiling run: its slots hold no request."""
        candidates(logits, self.canvas.mask_token_id)
        return self.commit_only(input_batch)

    def gather(self, input_batch: InputBatch) -> tuple[CanvasBatch, torch.Tensor]:
        """The blocks of the batch, and the rows to compute logits of.

        Returns:
            The blocks, and for each of its cells the row of the hidden states,
            [rows] int64.
        """
        slot = input_batch.idx_mapping
        known = self.req_states.total_len.gpu[slot].long()
        canvas_lens = torch.from_numpy(input_batch.num_draft_tokens_per_req)
        batch = self.canvas.gather(slot, known, (canvas_lens > 0).to(slot.device))
        # A span ends with the block under denoising.
        block_start = input_batch.query_start_loc[1:] - self.canvas.block
        request, column = batch.cell
        return batch, block_start[request] + column

    def denoise(
        self, logits: torch.Tensor, batch: CanvasBatch, input_batch: InputBatch
    ) -> SamplerOutput:
        """Take one step for every request that has a canvas.

        Args:
            logits: [rows, vocab], those of `batch.cell`.

        Returns:
            Tokens that became known, [num_reqs, block] left-aligned, their number, and
            how many positions of each span have no final KV yet.
        """
        slot_np = input_batch.idx_mapping_np
        all_token_ids = self.req_states.all_token_ids.gpu
        rules = dict.fromkeys(self.canvas.algorithm[slot_np])
        needs = set().union(*(get_rule(name).needs for name in rules))
        for name in rules:
            if get_rule(name).reshapes:
                self._reshape(name, logits, batch, slot_np)
        found = self.sampling.propose(
            logits,
            batch,
            slot_np,
            self.canvas.mask_token_id,
            needs - {"noise"},
            all_token_ids,
        )
        canvas_step = self._canvas_step(found, batch, needs)
        write, done = self._decide(canvas_step, batch, slot_np, list(rules))
        candidate = canvas_step.candidate
        self.sampling.drop_bad_words(
            write, candidate, canvas_step.confidence, batch, slot_np, all_token_ids
        )
        slots = slot_np.tolist()
        if not self.logprobs.kept.keys().isdisjoint(slots):
            self.logprobs.record(logits, batch, write, candidate, slots)
        batch.write(write, candidate)
        tokens, count = self._emit(batch, done)
        logprobs = None
        if not self.logprobs.kept.keys().isdisjoint(slots):
            logprobs = self.logprobs.hand_out(
                slots, batch.first.tolist(), count.tolist()
            )
        self.trajectories = {
            input_batch.req_ids[index]: self._trajectory(batch, count, index)
            for index, slot in enumerate(slots)
            if slot in self.canvas.traced
        }
        return SamplerOutput(
            sampled_token_ids=tokens,
            logprobs_tensors=logprobs,
            num_nans=None,
            num_sampled=count,
            num_rejected=self._num_uncommitted(input_batch),
        )

    def _reshape(
        self, name: str, logits: torch.Tensor, batch: CanvasBatch, slot_np: np.ndarray
    ) -> None:
        """Let a rule change the logits of its requests' masks."""
        rule, history = cast(ReshapingRule, get_rule(name)), self.canvas.history
        assert history is not None
        chosen = torch.from_numpy(self.canvas.algorithm[slot_np] == name)
        request, column = batch.cell
        wanted = chosen.to(request.device)[request] & batch.masked[request, column]
        rows = wanted.nonzero().squeeze(1)
        request, column = request[rows], column[rows]
        slot, step = batch.slot[request], batch.step[request]
        part = logits[rows]
        found = candidates(part, self.canvas.mask_token_id)
        begun = (step > 0).unsqueeze(1)
        tokens, values = rule.reshape(
            part,
            found.token,
            found.confidence,
            (history[0][slot, column] * begun, history[1][slot, column] * begun),
            step,
            {p: self.canvas.params[p][slot] for p in rule.parameters},
        )
        history[0][slot, column], history[1][slot, column] = tokens, values
        logits[rows] = part

    def _trajectory(
        self, batch: CanvasBatch, count: torch.Tensor, index: int
    ) -> list[int]:
        """Steps that decided the tokens which request `index` hands out."""
        first = int(batch.first[index])
        return batch.decided_at[index, first : first + int(count[index])].tolist()

    def _canvas_step(
        self, found: Candidates, batch: CanvasBatch, needs: set[str]
    ) -> CanvasStep:
        """Rows of candidates to [n, block]."""

        def spread(rows: torch.Tensor) -> torch.Tensor:
            grid = torch.zeros_like(batch.tokens, dtype=rows.dtype)
            grid[batch.cell] = rows
            return grid

        return CanvasStep(
            tokens=batch.tokens,
            masked=batch.masked,
            editable=batch.editable,
            step=batch.step,
            post_steps=batch.post_steps,
            candidate=spread(found.token),
            confidence=spread(found.confidence),
            entropy=None if found.entropy is None else spread(found.entropy),
            margin=None if found.margin is None else spread(found.margin),
            noise=self.sampling.order_noise(batch) if "noise" in needs else None,
            params={},
        )

    def _decide(
        self,
        canvas_step: CanvasStep,
        batch: CanvasBatch,
        slot_np: np.ndarray,
        rules: list[str],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ask each rule in the batch about its requests.

        Returns:
            write: [num_reqs, block] bool: positions that take their candidate.
            done: [num_reqs] bool: decoded positions are stable; False where a rule may
                still revise them.
        """
        write = torch.zeros_like(batch.masked)
        done = torch.ones_like(batch.active)
        for name in rules:
            rule = get_rule(name)
            rows: torch.Tensor | slice = slice(None)
            mine, slot = canvas_step, batch.slot
            if len(rules) > 1:
                chosen = np.flatnonzero(self.canvas.algorithm[slot_np] == name)
                rows = torch.from_numpy(chosen).to(write.device)
                mine, slot = canvas_step.take(rows), batch.slot[rows]
            mine.params = {p: self.canvas.params[p][slot] for p in rule.parameters}
            decision = rule.decide(mine)
            write[rows] = decision.write
            if decision.done is not None:
                done[rows] = decision.done
        return write, done

    def _emit(
        self, batch: CanvasBatch, done: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the blocks, and hand out their stable tokens: up to the first mask.

        Returns:
            tokens: [num_reqs, block] int64, left-aligned.
            count: [num_reqs] int32.
        """
        block, first = self.canvas.block, batch.first
        column = torch.arange(block, device=first.device)
        first_mask = torch.where(batch.masked, column, block).amin(dim=1)
        may_emit = batch.active & done
        room = self.canvas.max_len[batch.slot] - batch.known
        count = torch.minimum(first_mask - first, room) * may_emit
        tokens = batch.tokens.gather(1, (first.unsqueeze(1) + column) % block)
        self.canvas.scatter(batch, finished=may_emit & (first_mask == block))
        return tokens, count.int()

    def commit_only(self, input_batch: InputBatch) -> SamplerOutput:
        """The output of a step in which no request has a canvas."""
        shape = (input_batch.num_reqs, self.canvas.block)
        tokens = input_batch.idx_mapping.new_zeros(shape)
        return SamplerOutput(
            sampled_token_ids=tokens,
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=tokens[:, 0].int(),
            num_rejected=self._num_uncommitted(input_batch),
        )

    def _num_uncommitted(self, input_batch: InputBatch) -> torch.Tensor:
        """[num_reqs] int32: what vLLM takes off the computed tokens after the step.

        Spans start and end on block borders, so a span with a canvas commits all but
        its last block, and a chunk without one commits all of it.
        """
        canvas_lens = input_batch.num_draft_tokens_per_req
        if canvas_lens is None:
            return torch.zeros_like(input_batch.idx_mapping, dtype=torch.int32)
        uncommitted = np.where(canvas_lens > 0, self.canvas.block, 0)
        return torch.from_numpy(uncommitted).to(input_batch.idx_mapping.device).int()
