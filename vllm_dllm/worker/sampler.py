"""DenoisingSampler: logits -> candidates -> rule -> canvas -> emitted tokens."""

from collections.abc import Callable
from functools import partial

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import GrammarOutput
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.states import RequestState

from vllm_dllm.decoding.base import CanvasStep, Decision, Moves, reshapes
from vllm_dllm.ops.candidate import Candidates, candidates
from vllm_dllm.ops.reach import Reach
from vllm_dllm.report import NOTHING, StepReport
from vllm_dllm.worker.batch_rules import BatchRules, RuleShare
from vllm_dllm.worker.bonus import add_bonuses
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.changed_logits import take_back
from vllm_dllm.worker.decision import StepDecision
from vllm_dllm.worker.emission import emit
from vllm_dllm.worker.grammar import exclude_ungrammatical
from vllm_dllm.worker.moves import another_token, exclude_moves, merged
from vllm_dllm.worker.rule_tables import needs_of
from vllm_dllm.worker.slots import Slots
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.telling import Outcome


class NoPenalties:
    """The runner counts output tokens for penalties unless there is no table."""

    output_bin_counts = None


class DenoisingSampler:
    """Takes the place of vLLM's sampler for a whole batch of canvases.

    A step is `gather`, then the model's logits of the gathered rows, then `denoise`.
    """

    penalties_state = NoPenalties()

    def __init__(
        self, slots: Slots, req_states: RequestState, sampler: Sampler | None
    ) -> None:
        """`sampler`: vLLM's; None in a stage of a pipeline that decides nothing."""
        self.sampling_states = sampler.sampling_states if sampler else None
        self.req_states = req_states
        self.layout = slots.layout
        self.buffers = slots.buffers
        self.canvas = slots.canvas
        self.rules = slots.rules
        self.soft = slots.soft
        self.sampling = slots.sampling
        moves = slots.config.facts.moves
        self.moves = None if moves is None else Moves(*moves)
        self.logprobs = slots.logprobs
        self.telling = slots.telling
        self.publish: Callable[[StepDecision], None] | None = None
        """Brings decisions to the other stages of a pipeline."""
        self._make_report: Callable[[], StepReport] | None = None
        """The report of the last step, if there is anything to report."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """Requests are added with their ids and lengths (model_state.add_request)."""

    def apply_staged_writes(self) -> None:
        """Nothing is staged: requests are added between steps, on one stream."""

    def profile(self, logits: torch.Tensor) -> None:
        """Take the memory of a step, and on a GPU compile its two kernels."""
        for measures in (False, True):
            candidates(logits, self.canvas.mask_token_id, measures)

    def gather(self, spans: SpanBatch) -> tuple[CanvasBatch, torch.Tensor]:
        """The blocks of the batch, and the rows to compute logits of.

        Returns:
            The blocks, and the rows of the hidden states, [rows] int64: one for each
            of the batch's cells, then one of the second branch for each of
            `guided_rows`.
        """
        may_revise = self.rules.may_revise.any_of(spans.slot_np)
        revises = self.rules.revises if may_revise else None
        layout = self.layout
        batch = self.canvas.gather(
            spans, revises, self.buffers, layout.end, layout.given
        )
        rows = self.layout.logit_rows(spans, batch.request, batch.cell_position)
        if spans.branches is not None:
            guided = batch.guided_rows()
            follows = spans.branches.follows[batch.request[guided]]
            rows = torch.cat([rows, rows[guided] + follows])
        return batch, rows

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
                output of which the step itself does not say it (runs.py).

        Returns:
            Tokens that became known, [num_reqs, width] left-aligned, their number, and
            how many positions of each span the next step forwards again.
        """
        if batch.spans.branches is not None:
            guided = batch.guided_rows()
            request = batch.request[guided]
            logits = batch.spans.branches.guide(logits, guided, request)
        reach = None
        if grammar is not None or batch.spans.runs is not None:
            num_drafts = input_batch.num_draft_tokens_per_req
            reach = exclude_ungrammatical(
                logits, batch, grammar, input_batch.req_ids, num_drafts
            )
        decision = self.decide(logits, batch, reach)
        if self.publish is not None:
            self.publish(decision)
        if self.logprobs.kept:
            self.logprobs.record(logits, batch, decision.write, decision.candidate)
            if decision.source is not None:
                self.logprobs.move(batch, decision.source)
        tokens, count = self.apply(decision, batch)
        self._make_report = None
        if self.telling.has_to_tell(batch):
            outcome = Outcome(
                req_ids=input_batch.req_ids,
                batch=batch,
                write=decision.write,
                changed=decision.changed,
                candidate=decision.candidate,
                count=count,
                forced=None if reach is None else decision.write & reach.forced,
                opened=self.buffers.opened,
            )
            self._make_report = partial(self.telling.report, outcome)
        return SamplerOutput(
            sampled_token_ids=tokens,
            logprobs_tensors=self.logprobs.hand_out(batch, count),
            num_nans=None,
            num_sampled=count,
            num_rejected=self._rows_back(batch.spans, count),
        )

    def decide(
        self, logits: torch.Tensor, batch: CanvasBatch, reach: Reach | None = None
    ) -> StepDecision:
        """Ask the rules which positions are written, and with what.

        Args:
            logits: [rows, vocab], those of `batch.cell`; left as they are but for the
                mask's column.
            reach: what grammars let the step write; None without any.
        """
        spans, mask = batch.spans, self.canvas.mask_token_id
        all_token_ids = self.req_states.all_token_ids.gpu
        rules = self.rules.of_batch(batch.slot, batch.slot_np, spans.is_busy)
        needs = rules.needs
        propose = partial(
            self.sampling.propose,
            mask_token_id=mask,
            measures=bool(needs & {"entropy", "margin"}),
            all_token_ids=all_token_ids,
        )
        changed = exclude_moves(logits, self.moves)
        changed += add_bonuses(rules.names, logits, batch, self.rules, mask)
        found = propose(logits, batch)
        take_back(logits, changed)
        still = None
        if "moves" in needs:
            (still,) = batch.spread(found.token)
            may_move = self.rules.which_need("moves", batch.slot_np)
            moving = propose(logits, batch)
            found = merged(found, moving, may_move[batch.cell[0]])
        if spans.adapts:
            self._end_blocks(self._found_lengths(found, batch), batch)
        canvas_step = self._canvas_step(found, batch, needs)
        canvas_step.still = still
        another = partial(another_token, propose, logits, batch)
        if reach is not None:
            choice = reach.to_choose_from(canvas_step.candidate)
            canvas_step.masked = canvas_step.masked & choice
        decision = self._ask_rules(rules, canvas_step, batch, another)
        if reach is not None:
            decision.write = reach.from_the_left(decision.write, decision.candidate)
        write = decision.write
        if spans.leads is not None:
            lead = batch.masked & (batch.column == 0)
            leads = batch.of_blocks(spans.leads).unsqueeze(1)
            write = decision.write = torch.where(leads, lead, write)
        if spans.seeds is not None:
            decision.done |= batch.of_blocks(spans.seeds)
        self.sampling.drop_bad_words(
            write, decision.candidate, decision.confidence, batch, all_token_ids
        )
        return decision

    def apply(
        self, decision: StepDecision, batch: CanvasBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write, store the blocks, and hand out their stable tokens: up to the first
        mask.

        Returns:
            tokens: [num_reqs, width] int64, left-aligned.
            count: [num_reqs] int32.
        """
        batch.write(decision.write, decision.candidate)
        if decision.source is not None:
            batch.move(decision.source)
        emission = emit(batch, decision.done, self.canvas)
        self.soft.settle(
            batch,
            decision.write,
            decision.candidate,
            decision.confidence,
            emission.finished,
        )
        if batch.buffered is not None:
            assert decision.stability is not None
            self._settle_buffers(batch, decision.stability)
        return emission.tokens, emission.count

    def _settle_buffers(self, batch: CanvasBatch, stability: torch.Tensor) -> None:
        """Where its rule does not say how stable a block is, one without masks is."""
        assert batch.buffered is not None and isinstance(batch.place, torch.Tensor)
        decoded = ~batch.masked.any(dim=1)
        self.buffers.settle(
            batch.slot,
            batch.place,
            torch.where(stability.isnan(), decoded.float(), stability),
            has_canvas=batch.first < batch.length,
            is_open=batch.buffered.is_open,
        )

    def room_for_decision(self, batch: CanvasBatch) -> StepDecision:
        """What another stage's decision about the batch is received in."""
        names = self.rules.of(batch.spans.slot_np)
        nothing = torch.zeros_like(batch.tokens)
        moves = "moves" in needs_of(names)
        return StepDecision.nothing(batch, nothing, nothing.float(), moves)

    def follow(self, decision: StepDecision, batch: CanvasBatch) -> SamplerOutput:
        """Take a step that another stage decided: as `denoise`, but for what only that
        one tells the client."""
        if decision.length is not None:
            self._end_blocks(decision.length, batch)
        tokens, count = self.apply(decision, batch)
        return SamplerOutput(
            sampled_token_ids=tokens,
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=count,
            num_rejected=self._rows_back(batch.spans, count),
        )

    def commit_only(self, spans: SpanBatch) -> SamplerOutput:
        """The output of a step in which no request decides anything."""
        self._make_report = None
        count = torch.zeros_like(spans.slot, dtype=torch.int32)
        return SamplerOutput(
            sampled_token_ids=spans.slot.new_zeros(len(spans), 1),
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=count,
            num_rejected=self._rows_back(spans, count),
        )

    def take_report(self) -> StepReport:
        """The report of the last step, once. It waits for the device, so it is for when
        everything else of the step is under way."""
        make, self._make_report = self._make_report, None
        return NOTHING if make is None else make()

    def _found_lengths(self, found: Candidates, batch: CanvasBatch) -> torch.Tensor:
        """[m] int64: lengths of the blocks, where the step's candidates end them."""
        seen = found.undrawn or found
        return self.layout.adaptive.find(
            batch.slot,
            batch.length,
            batch.begins,
            *batch.spread(seen.token, seen.confidence),
        )

    def _end_blocks(self, length: torch.Tensor, batch: CanvasBatch) -> None:
        """End the blocks that begin in this step where its candidates say."""
        adaptive, rows = self.layout.adaptive, batch.spans.rows
        end = adaptive.keep(batch.slot, batch.known, batch.begins, length)
        batch.shorten(length)
        batch.leaves_whole = adaptive.adapts[batch.slot]
        batch.found_end = end if rows is None else end[rows.begin]

    def _canvas_step(
        self, found: Candidates, batch: CanvasBatch, needs: set[str]
    ) -> CanvasStep:
        """Rows of candidates to [n, width]."""
        masked, editable = batch.masked, batch.editable
        if batch.writable is not None:
            masked, editable = masked & batch.writable, editable & batch.writable
        before, age, opened = None, None, batch.buffered
        if opened is not None:
            before, age = opened.before, batch.step + opened.holds_prompt
        candidate, confidence = batch.spread(found.token, found.confidence)
        entropy, margin = found.entropy, found.margin
        if entropy is not None and margin is not None:
            entropy, margin = batch.spread(entropy, margin)
        step_time = None
        if "time" in needs:
            step_time = self.rules.time_share(batch.slot, batch.step)
        return CanvasStep(
            tokens=batch.tokens,
            masked=masked,
            editable=editable,
            length=batch.length,
            step=batch.step,
            post_steps=batch.post_steps,
            candidate=candidate,
            confidence=confidence,
            entropy=entropy,
            margin=margin,
            noise=self.sampling.order_noise(batch) if "noise" in needs else None,
            time=step_time,
            before=before,
            age=age,
            moves=self.moves,
            given=None if batch.given is None else batch.given.sum(dim=1),
            params={},
        )

    def _ask_rules(
        self,
        rules: BatchRules,
        canvas_step: CanvasStep,
        batch: CanvasBatch,
        another: Callable[..., torch.Tensor],
    ) -> StepDecision:
        """Ask each rule in the batch about its blocks; `another` is `another_token` of
        the step."""
        of_step = (
            batch,
            canvas_step.candidate,
            canvas_step.confidence,
            "moves" in rules.needs,
        )
        if len(rules.shares) == 1:
            answer = self._ask(rules.shares[0], canvas_step, batch, another)
            return StepDecision.of(answer, *of_step)
        decided = StepDecision.nothing(*of_step)
        for share in rules.shares:
            assert share.rows is not None
            mine = canvas_step.take(share.rows)
            decided.take(share.rows, self._ask(share, mine, batch, another))
        return decided

    def _ask(
        self,
        share: RuleShare,
        mine: CanvasStep,
        batch: CanvasBatch,
        another: Callable[..., torch.Tensor],
    ) -> Decision:
        """Ask a rule about `mine`, the step of its blocks."""
        name, rule = share.name, share.rule
        mine.params = share.params
        if rule.memory and not reshapes(rule):
            width = batch.tokens.shape[1]
            mine.memory = self.rules.recall(name, share.slot, mine.step, width)
        if "moves" in rule.needs:
            mine.another = partial(another, self.rules.has(name, batch.slot_np))
        answer = rule.decide(mine)
        self.rules.remember(share.slot, mine.memory)
        return answer

    def _rows_back(self, spans: SpanBatch, count: torch.Tensor) -> torch.Tensor:
        """[num_reqs] int32: what vLLM takes off the computed tokens after the step, so
        that the next one starts where the plan says (plans/base.py).

        count: [num_reqs] int32: tokens that became known.
        """
        next_start = self.layout.next_start(spans, count)
        if spans.rows is not None:
            self.buffers.advance(spans.slot, next_start)
        return (spans.end - next_start).int()
