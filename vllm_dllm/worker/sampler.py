"""DenoisingSampler: logits -> candidates -> rule -> canvas -> emitted tokens."""

from typing import Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from vllm_dllm.decoding.base import CanvasStep
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.ops.candidate import candidates
from vllm_dllm.worker.canvas import Canvas


class NoPenalties:
    """The runner counts output tokens for penalties unless there is no table."""

    output_bin_counts = None


class DenoisingSampler:
    """Takes the place of vLLM's sampler for a whole batch of canvases."""

    penalties_state = NoPenalties()

    def __init__(self, sampler: Sampler, canvas: Canvas) -> None:
        self.sampling_states = sampler.sampling_states
        self.req_states = sampler.req_states
        self.compute_nans = sampler.compute_nans
        self.canvas = canvas

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """Parameters are kept by the canvas (model_state.add_request)."""

    def apply_staged_writes(self) -> None:
        """Nothing is staged: requests are added between steps, on one stream."""

    def __call__(self, logits: torch.Tensor, input_batch: InputBatch) -> SamplerOutput:
        """Take one denoising step for every request that has a canvas.

        Args:
            logits: [num_canvas_positions, vocab] in the order of the batch; rows of a
                request are its canvas, the last positions of its block.

        Returns:
            Tokens that became known, [num_reqs, block] left-aligned, their number, and
            how many positions of each span have no final KV yet.
        """
        if input_batch.num_draft_tokens == 0:
            return self.commit_only(input_batch)
        block, mask = self.canvas.block, self.canvas.mask_token_id
        canvas_lens = input_batch.num_draft_tokens_per_req
        slot = input_batch.idx_mapping
        known = self.req_states.total_len.gpu[slot].long()

        # Rows of the logits to [request, column] of the blocks.
        batch_index = torch.from_numpy(
            np.repeat(np.arange(input_batch.num_reqs), canvas_lens)
        )
        position = input_batch.positions[input_batch.logits_indices]
        cell = (batch_index.to(slot.device), position % block)

        tokens = self.canvas.tokens[slot]
        masked = torch.zeros_like(tokens, dtype=torch.bool)
        masked[cell] = tokens[cell] == mask

        token, confidence = candidates(logits, mask)
        candidate = torch.full_like(tokens, mask)
        candidate[cell] = token
        score = tokens.new_zeros(tokens.shape, dtype=torch.float32)
        score[cell] = confidence

        selected = self._select(input_batch.idx_mapping_np, slot, masked, score)
        tokens = torch.where(selected, candidate, tokens)
        has_canvas = torch.from_numpy(canvas_lens > 0).to(slot.device)
        return self._emit(
            input_batch, slot, known, tokens, masked & ~selected, has_canvas
        )

    def _select(
        self,
        slot_np: np.ndarray[Any, Any],
        slot: torch.Tensor,
        masked: torch.Tensor,
        confidence: torch.Tensor,
    ) -> torch.Tensor:
        """Ask each rule in the batch about its requests: [num_reqs, block] bool."""
        canvas = self.canvas
        selected = torch.zeros_like(masked)
        algorithms = canvas.algorithm[slot_np]
        for name in dict.fromkeys(algorithms):
            rows = torch.from_numpy(np.flatnonzero(algorithms == name)).to(slot.device)
            slots = slot[rows]
            step = CanvasStep(
                masked=masked[rows],
                step=canvas.step[slots],
                confidence=confidence[rows],
                threshold=canvas.threshold[slots],
                steps=canvas.steps[slots],
            )
            selected[rows] = get_rule(name).select(step)
        return selected

    def _emit(
        self,
        input_batch: InputBatch,
        slot: torch.Tensor,
        known: torch.Tensor,
        tokens: torch.Tensor,
        masked: torch.Tensor,
        has_canvas: torch.Tensor,
    ) -> SamplerOutput:
        """Store the blocks, and hand out their tokens up to the first mask."""
        canvas = self.canvas
        block = canvas.block
        column = torch.arange(block, device=slot.device)
        first = (known % block).unsqueeze(1)
        # The first column that is still a mask, or the end of the block.
        stable = torch.where(masked, column, block).amin(dim=1)
        num_emitted = torch.minimum(
            stable - first.squeeze(1), canvas.max_len[slot] - known
        )
        num_emitted = torch.where(has_canvas, num_emitted, 0)
        emitted = tokens.gather(1, (first + column) % block)

        finished = has_canvas & (known % block + num_emitted == block)
        canvas.tokens[slot] = torch.where(
            finished.unsqueeze(1), canvas.mask_token_id, tokens
        )
        step = canvas.step[slot] + has_canvas.long()
        canvas.step[slot] = torch.where(finished, 0, step)
        return SamplerOutput(
            sampled_token_ids=emitted,
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=num_emitted.int(),
            num_rejected=self._num_uncommitted(input_batch),
        )

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
        return torch.from_numpy(uncommitted).to(
            input_batch.idx_mapping.device, torch.int32
        )
