"""StepDecision: what a step writes, decided once and applied by every stage."""

from dataclasses import dataclass

import torch

from vllm_dllm.decoding.base import Decision
from vllm_dllm.worker.canvas_batch import CanvasBatch


@dataclass
class StepDecision:
    """What a step writes; data that `apply` needs nothing but the canvas for."""

    write: torch.Tensor
    """[m, width] bool: positions that take their candidate."""
    candidate: torch.Tensor
    """[m, width] int64."""
    source: torch.Tensor | None
    """[m, width] int64: as in `Decision`; None where no rule of the batch moves any."""
    confidence: torch.Tensor
    """[m, width] float32, of the candidates."""
    done: torch.Tensor
    """[m] bool: decoded positions are stable; False where a rule may still revise
    them."""
    stability: torch.Tensor | None
    """[m] float32: as in `Decision`; nan where the rule does not say. None where no
    request has a buffer."""
    length: torch.Tensor | None
    """[m] int64: lengths of the blocks; None where no step finds any."""

    @classmethod
    def of(
        cls,
        answer: Decision,
        batch: CanvasBatch,
        candidate: torch.Tensor,
        confidence: torch.Tensor,
        moves: bool,
    ) -> "StepDecision":
        """What a rule answers about all blocks of a batch.

        Args:
            candidate, confidence: [m, width]: what was proposed.
            moves: whether a rule of the batch may move tokens.
        """
        done, source, stability = answer.done, answer.source, answer.stability
        if source is None and moves:
            source = batch.column.repeat(len(batch.slot), 1)
        if stability is None and batch.buffered is not None:
            stability = torch.full_like(batch.active, torch.nan, dtype=torch.float32)
        return cls(
            write=answer.write,
            candidate=candidate if answer.tokens is None else answer.tokens,
            source=source,
            confidence=confidence,
            done=torch.ones_like(batch.active) if done is None else done,
            stability=stability,
            length=batch.length.clone() if batch.spans.adapts else None,
        )

    @classmethod
    def nothing(
        cls,
        batch: CanvasBatch,
        candidate: torch.Tensor,
        confidence: torch.Tensor,
        moves: bool,
    ) -> "StepDecision":
        """One that writes nothing; arguments as in `of`."""
        answer = Decision(torch.zeros_like(batch.masked))
        return cls.of(answer, batch, candidate, confidence, moves)

    def take(self, rows: torch.Tensor, answer: Decision) -> None:
        """Take what a rule answers about some of the blocks; rows: [k] int64."""
        self.write[rows] = answer.write
        for own, values in (
            (self.candidate, answer.tokens),
            (self.source, answer.source),
            (self.done, answer.done),
            (self.stability, answer.stability),
        ):
            if values is not None:
                assert own is not None
                own[rows] = values

    @property
    def changed(self) -> torch.Tensor:
        """[m, width] bool: where what is written is after the step."""
        if self.source is None:
            return self.write
        return self.write.gather(1, self.source.clamp(min=0)) & (self.source >= 0)
