"""Telling: what requests that asked for it are told of a step, besides tokens."""

from dataclasses import dataclass

import torch

from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.plans.base import Plan
from vllm_dllm.report import Draft, Rest, StepReport
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.canvas_batch import CanvasBatch


@dataclass
class Outcome:
    """A step that was taken."""

    req_ids: list[str]
    batch: CanvasBatch
    """After the step."""
    write: torch.Tensor
    """[m, width] bool: positions written."""
    changed: torch.Tensor
    """[m, width] bool: where what was written is after the step, in which it may have
    moved."""
    candidate: torch.Tensor
    """[m, width] int64: what was proposed."""
    count: torch.Tensor
    """[n] int32: tokens handed out."""
    forced: torch.Tensor | None
    """[m, width] bool: of `write`, where a grammar allowed one token; None without any
    grammar."""
    opened: torch.Tensor
    """[num_slots] int64: end of the last block that was opened; undefined where a
    request has one block at a time."""


class Telling:
    """By slot: which requests want to know what."""

    def __init__(self) -> None:
        self.traced: set[int] = set()
        """Those that want to know when their tokens were decided."""
        self.watched: set[int] = set()
        """Those that want to see every step of their block."""
        self.whole: set[int] = set()
        """Those that want to know what was decoded behind their end."""
        self.awaited: set[int] = set()
        """Those whose next step the scheduler plans by what is open."""
        self.in_runs: set[int] = set()
        """Those of which the engine wants to know candidates (runs.py)."""
        self.told: set[int] = set()
        """All of these."""

    def add_request(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        for slots, wanted in (
            (self.traced, decoding.return_trajectory or decoding.return_step_maps),
            (self.whole, decoding.return_rest),
            (self.watched, decoding.stream_drafts),
            (self.awaited, isinstance(plan, AfterPrompt)),
            (self.in_runs, decoding.in_runs),
        ):
            (slots.add if wanted else slots.discard)(slot)
        several = self.traced, self.watched, self.whole, self.awaited, self.in_runs
        self.told = set().union(*several)

    def has_to_tell(self, batch: CanvasBatch) -> bool:
        """Whether a step may have something to report."""
        if batch.revises or batch.found_end is not None:
            return True
        return not self.told.isdisjoint(batch.spans.slot_np.tolist())

    def report(self, step: Outcome) -> StepReport:
        """What is sent of a step. Waits for the device."""
        report, batch = StepReport(), step.batch
        if batch.revises:
            report.revised = int((step.write & batch.editable).sum())
        slots = batch.spans.slot_np.tolist()
        if not self.awaited.isdisjoint(slots):
            ends = step.opened[batch.spans.slot].tolist()
            opened = zip(step.req_ids, slots, ends, strict=True)
            report.marks = {r: end for r, slot, end in opened if slot in self.awaited}
        if batch.found_end is not None:
            found = zip(step.req_ids, batch.found_end.tolist(), strict=True)
            report.marks |= {req_id: end for req_id, end in found if end}
        if not self.in_runs.isdisjoint(slots):
            report.candidates = self._candidates(step)
        told = self.traced | self.watched | self.whole
        if told.isdisjoint(slots):
            return report
        for index, (req_id, slot) in enumerate(zip(step.req_ids, slots, strict=True)):
            if slot not in told:
                continue
            count = int(step.count[index])
            canvas, front = batch.canvas_of, batch.blocks_of(index).start
            if slot in self.traced:
                decided_at = canvas(index, batch.decided_at)[:count]
                report.trajectories[req_id] = decided_at.tolist()
            if slot in self.whole and batch.active[front]:
                tokens = batch.tokens.masked_fill(batch.masked, -1)
                steps = batch.decided_at.masked_fill(batch.masked, -1)
                report.rests[req_id] = Rest(
                    start=int(batch.known[front]),
                    tokens=canvas(index, tokens).tolist(),
                    steps=canvas(index, steps).tolist(),
                )
            if slot in self.watched and batch.active[front]:
                known = int(batch.known[front])
                if step.forced is not None:
                    forced = canvas(index, step.forced).nonzero().squeeze(1) + known
                    report.forced[req_id] = forced.tolist()
                tokens = batch.tokens.masked_fill(batch.masked, -1)
                changed = canvas(index, step.changed).nonzero().squeeze(1) + known
                blocks = batch.blocks_of(index)
                own = slice(blocks.start, blocks.stop)
                end, length = (batch.start + batch.length)[own], batch.length[own]
                shown = end[(length > 0) & (end > known + count)]
                report.drafts[req_id] = Draft(
                    start=known + count,
                    tokens=canvas(index, tokens)[count:].tolist(),
                    changed=changed.tolist(),
                    step=int(batch.step[front]),
                    block_ends=shown.tolist(),
                )
        return report

    def _candidates(self, step: Outcome) -> dict[str, list[int]]:
        """What was proposed for the canvases that are decoded in runs, but for what was
        handed out."""
        batch = step.batch
        counts, active = step.count.tolist(), batch.active.tolist()
        first, length = batch.first.tolist(), batch.length.tolist()
        candidate, found = step.candidate.tolist(), dict[str, list[int]]()
        for index, slot in enumerate(batch.spans.slot_np.tolist()):
            # With a grammar a request has one block at a time.
            block = batch.blocks_of(index).start
            if slot in self.in_runs and active[block]:
                left = slice(first[block] + counts[index], length[block])
                found[step.req_ids[index]] = candidate[block][left]
        return found
