"""DenoisingSampler: logits -> candidates -> rule -> canvas -> emitted tokens."""

from collections.abc import Callable
from functools import partial
from typing import cast

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import GrammarOutput
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler

from vllm_dllm.decoding.base import CanvasStep, ReshapingRule
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.ops.candidate import Candidates, candidates
from vllm_dllm.report import Draft, StepReport
from vllm_dllm.worker.canvas import Canvas, CanvasBatch
from vllm_dllm.worker.grammar import exclude_ungrammatical
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
        self,
        sampler: Sampler,
        canvas: Canvas,
        sampling: Sampling,
        logprobs: Logprobs,
        shifted_logits: bool,
    ) -> None:
        self.sampling_states = sampler.sampling_states
        self.req_states = sampler.req_states
        self.canvas = canvas
        self.sampling = sampling
        self.logprobs = logprobs
        self.shift = int(shifted_logits)
        """How many rows before its own a position is predicted."""
        self._make_report: Callable[[], StepReport] = StepReport
        """The report of the last step."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """Requests are added with their ids and lengths (model_state.add_request)."""

    def apply_staged_writes(self) -> None:
        """Nothing is staged: requests are added between steps, on one stream."""

    def profile(self, logits: torch.Tensor) -> None:
        """Take the memory of a step, and on a GPU compile its two kernels."""
        for measures in (False, True):
            candidates(logits, self.canvas.mask_token_id, measures)

    def gather(self, input_batch: InputBatch) -> tuple[CanvasBatch, torch.Tensor]:
        """The blocks of the batch, and the rows to compute logits of.

        Returns:
            The blocks, and the rows of the hidden states, [rows] int64: one for each
            of the batch's cells, then one of the unconditional branch for each cell in
            `batch.guided`.
        """
        slot, slot_np = input_batch.idx_mapping, input_batch.idx_mapping_np
        known = self.req_states.total_len.gpu[slot].long()
        active = async_tensor_h2d(input_batch.num_draft_tokens_per_req > 0, slot.device)
        batch = self.canvas.gather(slot, slot_np, known, active)
        query_start = input_batch.query_start_loc[: len(slot) + 1].long()
        span_start = self._span_start(input_batch)
        request, column = batch.cell
        # Clamped, because a prefill chunk ends before the block under denoising, and
        # because shifted logits have no row for the first position of a span.
        offset = batch.start - span_start - self.shift
        row = (query_start[:-1] + offset)[request] + column
        row = row.clamp(query_start[:-1][request], query_start[1:][request] - 1)
        if batch.guided is not None:
            twin_row = self.canvas.twin_row(slot, span_start, query_start.diff())
            guided = batch.guided
            row = torch.cat([row, row[guided] + twin_row[request[guided]]])
        return batch, row

    def _span_start(self, input_batch: InputBatch) -> torch.Tensor:
        """[num_reqs] int64: the first position of each span."""
        first = input_batch.query_start_loc[: input_batch.num_reqs].long()
        return input_batch.positions[first]

    def denoise(
        self,
        logits: torch.Tensor,
        batch: CanvasBatch,
        input_batch: InputBatch,
        grammar: GrammarOutput | None,
    ) -> SamplerOutput:
        """Take one step for every request that has a canvas.

        Args:
            logits: [rows, vocab], of the rows that `gather` named.
            grammar: what may follow the known tokens of requests with structured
                output, if there are any.

        Returns:
            Tokens that became known, [num_reqs, width] left-aligned, their number, and
            how many positions of each span the next step forwards again.
        """
        slot_np = input_batch.idx_mapping_np
        all_token_ids = self.req_states.all_token_ids.gpu
        if batch.guided is not None:
            logits = self._guide(logits, batch, batch.guided)
        if grammar is not None:
            num_drafts = input_batch.num_draft_tokens_per_req
            exclude_ungrammatical(
                logits, batch, grammar, input_batch.req_ids, num_drafts
            )
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
            needs & {"entropy", "margin"},
            all_token_ids,
        )
        canvas_step = self._canvas_step(found, batch, slot_np, needs)
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
        self._make_report = partial(
            self._report, input_batch.req_ids, slots, batch, write, count
        )
        return SamplerOutput(
            sampled_token_ids=tokens,
            logprobs_tensors=logprobs,
            num_nans=None,
            num_sampled=count,
            num_rejected=self._num_taken_back(input_batch, batch.known, count),
        )

    def _guide(
        self, logits: torch.Tensor, batch: CanvasBatch, guided: torch.Tensor
    ) -> torch.Tensor:
        """Classifier-free guidance: away from the unconditional branch.

        LLaDA's `generate`: l_u + (scale + 1) * (l - l_u).

        Args:
            logits: [rows + guided, vocab], as `gather` names them.

        Returns:
            [rows, vocab].
        """
        rows = len(batch.cell[0])
        logits, unconditional = logits[:rows], logits[rows:]
        scale = self.canvas.cfg_scale[batch.slot][batch.cell[0][guided]].unsqueeze(1)
        away = (scale + 1) * (logits[guided] - unconditional)
        logits[guided] = (unconditional + away).to(logits.dtype)
        return logits

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

    def take_report(self) -> StepReport:
        """The report of the last step, once. It waits for the device, so it is for when
        everything else of the step is under way."""
        make, self._make_report = self._make_report, StepReport
        return make()

    def _report(
        self,
        req_ids: list[str],
        slots: list[int],
        batch: CanvasBatch,
        write: torch.Tensor,
        count: torch.Tensor,
    ) -> StepReport:
        """What the requests of the batch that asked for it are told of the step.

        Args:
            write: [num_reqs, width] bool: positions written.
            count: [num_reqs]: tokens handed out.
        """
        report = StepReport()
        if any(get_rule(name).revises for name in set(self.canvas.algorithm[slots])):
            report.revised = int((write & batch.editable).sum())
        for index, (req_id, slot) in enumerate(zip(req_ids, slots, strict=True)):
            if slot not in self.canvas.traced and slot not in self.canvas.watched:
                continue
            first, end = int(batch.first[index]), int(batch.length[index])
            rest = first + int(count[index])
            if slot in self.canvas.traced:
                report.trajectories[req_id] = batch.decided_at[
                    index, first:rest
                ].tolist()
            if slot in self.canvas.watched and batch.active[index]:
                start = int(batch.start[index])
                tokens = batch.tokens[index].masked_fill(batch.masked[index], -1)
                report.drafts[req_id] = Draft(
                    start=start + rest,
                    tokens=tokens[rest:end].tolist(),
                    changed=(write[index].nonzero().squeeze(1) + start).tolist(),
                    step=int(batch.step[index]),
                )
        return report

    def _canvas_step(
        self,
        found: Candidates,
        batch: CanvasBatch,
        slot_np: np.ndarray,
        needs: set[str],
    ) -> CanvasStep:
        """Rows of candidates to [n, width]."""

        def spread(rows: torch.Tensor) -> torch.Tensor:
            grid = torch.zeros_like(batch.tokens, dtype=rows.dtype)
            grid[batch.cell] = rows
            return grid

        return CanvasStep(
            tokens=batch.tokens,
            masked=batch.masked,
            editable=batch.editable,
            length=batch.length,
            step=batch.step,
            post_steps=batch.post_steps,
            candidate=spread(found.token),
            confidence=spread(found.confidence),
            entropy=None if found.entropy is None else spread(found.entropy),
            margin=None if found.margin is None else spread(found.margin),
            noise=self.sampling.order_noise(batch) if "noise" in needs else None,
            time=self.canvas.time_share(batch, slot_np) if "time" in needs else None,
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
            write: [num_reqs, width] bool: positions that take their candidate.
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
                index: torch.Tensor = async_tensor_h2d(chosen, write.device)
                rows, mine, slot = index, canvas_step.take(index), batch.slot[index]
            mine.params = {p: self.canvas.params[p][slot] for p in rule.parameters}
            decision = rule.decide(mine)
            write[rows] = decision.write
            if decision.done is not None:
                done[rows] = decision.done
        if self.shift:
            # Inside a block of a cached step no row predicts its first position, so a
            # refresh decides that one, and nothing else (Fast-dLLM on Dream).
            leads = (batch.step == 0) & self.canvas.reuses[batch.slot]
            lead = batch.masked & (batch.position == batch.start.unsqueeze(1))
            write = torch.where(leads.unsqueeze(1), lead, write)
        return write, done

    def _emit(
        self, batch: CanvasBatch, done: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the blocks, and hand out their stable tokens: up to the first mask.

        Returns:
            tokens: [num_reqs, width] int64, left-aligned.
            count: [num_reqs] int32.
        """
        width, first = batch.tokens.shape[1], batch.first
        column = torch.arange(width, device=first.device)
        length = batch.length.unsqueeze(1)
        first_mask = torch.where(batch.masked, column, length).amin(dim=1)
        may_emit = batch.active & done
        room = self.canvas.max_len[batch.slot] - batch.known
        count = torch.minimum(first_mask - first, room) * may_emit
        tokens = batch.tokens.gather(1, (first.unsqueeze(1) + column) % width)
        self.canvas.scatter(batch, finished=may_emit & (first_mask == batch.length))
        return tokens, count.int()

    def commit_only(self, input_batch: InputBatch) -> SamplerOutput:
        """The output of a step in which no request decides anything."""
        self._make_report = StepReport
        slot = input_batch.idx_mapping
        known = self.req_states.total_len.gpu[slot].long()
        count = torch.zeros_like(slot, dtype=torch.int32)
        return SamplerOutput(
            sampled_token_ids=slot.new_zeros(len(slot), 1),
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=count,
            num_rejected=self._num_taken_back(input_batch, known, count),
        )

    def _num_taken_back(
        self, input_batch: InputBatch, known: torch.Tensor, count: torch.Tensor
    ) -> torch.Tensor:
        """[num_reqs] int32: what vLLM takes off the computed tokens after the step, so
        that the next one starts where the plan says (span.py).

        Args:
            known: [num_reqs] int64, before the step; count: [num_reqs], new ones.
        """
        start = self._span_start(input_batch)
        query_start = input_batch.query_start_loc[: len(start) + 1].long()
        length = query_start.diff()
        next_start = self.canvas.next_start(
            input_batch.idx_mapping, start + length, known, known + count
        )
        return (start + length - next_start).int()
