"""DenoisingSampler: logits -> candidates -> rule -> canvas -> emitted tokens."""

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from vllm_dllm.decoding.base import CanvasStep
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.ops.candidate import candidates
from vllm_dllm.worker.canvas import Canvas, CanvasBatch


class NoPenalties:
    """The runner counts output tokens for penalties unless there is no table."""

    output_bin_counts = None


class DenoisingSampler:
    """Takes the place of vLLM's sampler for a whole batch of canvases.

    A step is `gather`, then the model's logits of the gathered rows, then `denoise`.
    """

    penalties_state = NoPenalties()

    def __init__(self, sampler: Sampler, canvas: Canvas) -> None:
        self.sampling_states = sampler.sampling_states
        self.req_states = sampler.req_states
        self.canvas = canvas

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """Parameters are kept by the canvas (model_state.add_request)."""

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
        token, probability = candidates(logits, self.canvas.mask_token_id)
        candidate = torch.zeros_like(batch.tokens)
        candidate[batch.cell] = token
        confidence = torch.zeros_like(batch.tokens, dtype=torch.float32)
        confidence[batch.cell] = probability

        selected = self._select(batch, confidence, input_batch)
        batch.tokens = torch.where(selected, candidate, batch.tokens)
        batch.masked &= ~selected
        emitted, num_emitted = self._emit(batch)
        return SamplerOutput(
            sampled_token_ids=emitted,
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=num_emitted,
            num_rejected=self._num_uncommitted(input_batch),
        )

    def _select(
        self, batch: CanvasBatch, confidence: torch.Tensor, input_batch: InputBatch
    ) -> torch.Tensor:
        """Ask each rule in the batch about its requests: [num_reqs, block] bool."""
        algorithms = self.canvas.algorithm[input_batch.idx_mapping_np]
        selected = torch.zeros_like(batch.masked)
        for name in dict.fromkeys(algorithms):
            rows = torch.from_numpy(np.flatnonzero(algorithms == name))
            rows = rows.to(selected.device)
            slot = batch.slot[rows]
            step = CanvasStep(
                masked=batch.masked[rows],
                step=self.canvas.step[slot],
                confidence=confidence[rows],
                threshold=self.canvas.threshold[slot],
                steps=self.canvas.steps[slot],
            )
            selected[rows] = get_rule(name).select(step)
        return selected

    def _emit(self, batch: CanvasBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the blocks, and hand out their tokens up to the first mask.

        Returns:
            tokens: [num_reqs, block] int64, left-aligned.
            count: [num_reqs] int32.
        """
        canvas = self.canvas
        column = torch.arange(canvas.block, device=batch.slot.device)
        first = batch.known % canvas.block
        first_mask = torch.where(batch.masked, column, canvas.block).amin(dim=1)
        room = canvas.max_len[batch.slot] - batch.known
        count = torch.minimum(first_mask - first, room) * batch.active
        tokens = batch.tokens.gather(1, (first.unsqueeze(1) + column) % canvas.block)

        finished = batch.active & (first_mask == canvas.block)
        canvas.tokens[batch.slot] = batch.tokens.masked_fill(
            finished.unsqueeze(1), canvas.mask_token_id
        )
        step = canvas.step[batch.slot] + batch.active
        canvas.step[batch.slot] = step.masked_fill(finished, 0)
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
