"""StepDecision: what a step writes, decided once and applied by every stage."""

from dataclasses import dataclass

import torch

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
    def nothing(
        cls,
        batch: CanvasBatch,
        candidate: torch.Tensor,
        confidence: torch.Tensor,
        moves: bool,
    ) -> "StepDecision":
        """One that writes nothing of its candidates.

        moves: whether a rule of the batch may move tokens.
        """
        stability = None
        if batch.buffered is not None:
            stability = torch.full_like(batch.active, torch.nan, dtype=torch.float32)
        return cls(
            write=torch.zeros_like(batch.masked),
            candidate=candidate,
            source=batch.column.repeat(len(batch.slot), 1) if moves else None,
            confidence=confidence,
            done=torch.ones_like(batch.active),
            stability=stability,
            length=batch.length.clone() if batch.spans.adapts else None,
        )

    @property
    def changed(self) -> torch.Tensor:
        """[m, width] bool: where what is written is after the step."""
        if self.source is None:
            return self.write
        return self.write.gather(1, self.source.clamp(min=0)) & (self.source >= 0)
