"""SpanBatch: what a step forwards for each of its requests, found once.

Inputs, attention, sampler and the start of the next step read it. It rides on vLLM's
`InputBatch`; a dummy batch (profiling, graph capture) has none.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from vllm_dllm.runs import Run
from vllm_dllm.worker.spans.block_rows import BlockRows
from vllm_dllm.worker.spans.branches import Branches


@dataclass
class SpanBatch:
    """The spans of the `n` requests of a step, in the order of the batch.

    Tensors are [n] int64 on the device where nothing else is said; positions are
    absolute ones of the request.
    """

    slot: torch.Tensor
    slot_np: np.ndarray
    """[n] int64: the same on the CPU."""
    query_start: torch.Tensor
    """[n + 1] int64: where the tokens of each span begin in the batch."""
    start: torch.Tensor
    """First position of the span."""
    end: torch.Tensor
    """One past its last position."""
    known: torch.Tensor
    """Number of known tokens."""
    shown: torch.Tensor
    """How many of them the model is shown; the positions after them are of the block,
    or masks."""
    decides: torch.Tensor
    """[n] bool: whether the step decides positions of the block; False in a prefill
    chunk and where lost keys are made again."""
    decides_np: np.ndarray
    """[n] bool: the same on the CPU."""
    block_start: torch.Tensor
    """First position of the block under denoising."""
    block_length: torch.Tensor
    """Number of its positions."""
    width: int
    """No block of the batch is longer."""
    rows_np: np.ndarray
    """[n] int64, on the CPU: rows that hold all of the block, if the step decides any
    of it: as many as the block has positions, or more at the end of a request. Never
    more than the positions that are forwarded."""
    owner: torch.Tensor
    """[num_tokens] int64: index in the batch of the request that a token belongs to."""
    position: torch.Tensor
    """[num_tokens] int64: of each token, in the sequence of its branch; which page it
    has is the runner's."""
    met: torch.Tensor | None = None
    """[n] bool: whether the step meets what it was planned for. Where it was planned
    ahead (course.py) its block may have ended; such a step decides nothing. None if no
    step is planned ahead."""
    first_row: torch.Tensor | None = None
    """First position that a row of the step predicts, the others follow; None where all
    of the block have one."""
    keeps: torch.Tensor | None = None
    """[n] bool: later steps read the keys of this one, which may be lost and are made
    again from the tokens that were known; None if no step of the batch is read."""
    leads: torch.Tensor | None = None
    """[n] bool: the step decides the first position of the block and nothing else,
    whatever the rule says; None if no step of the batch does."""
    seeds: torch.Tensor | None = None
    """[n] bool: those of `leads` whose position is not forwarded. What is decided there
    is known after the step, whatever the rule says; None if the regime has none."""
    kept: torch.Tensor | None = None
    """[n, width] int64: the column in which each position of the block is kept; None:
    in its own."""
    place: torch.Tensor | None = None
    """[n, width] int64: where each position of the block is forwarded, counted from the
    known tokens; None: in order."""
    rows: BlockRows | None = None
    """Blocks under denoising; None where each request has the one of `block_start`."""
    adapts: bool = False
    """Whether some request of the batch has blocks whose ends are found."""
    branches: Branches | None = None
    """Unconditional branches; None if no request of the batch is guided."""
    is_busy: bool = False
    """Whether requests that allow it take the threshold of a busy server."""
    runs: list[Run] | None = None
    """[n], on the CPU: what the bits of grammars assume; None if nothing."""

    def __len__(self) -> int:
        return len(self.slot)

    @property
    def length(self) -> torch.Tensor:
        """Number of tokens forwarded."""
        return self.end - self.start

    def attach(self, input_batch: InputBatch) -> None:
        input_batch.dllm_spans = self

    @staticmethod
    def of(input_batch: InputBatch) -> "SpanBatch | None":
        """The spans of a batch, None if it is a dummy."""
        return getattr(input_batch, "dllm_spans", None)
