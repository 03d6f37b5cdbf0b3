"""Given tokens: what canvases hold from the start, and what follows them.

Whatever a step shows the model or decides, these positions have the tokens that the
request gave (vllm_dllm/given.py): they are no masks, and no rule revises them.
"""

import numpy as np
import torch

from vllm_dllm.given import GAP
from vllm_dllm.plans.base import Plan
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.memory import BlockTable
from vllm_dllm.worker.slot_flags import SlotFlags


class Given:
    """By slot."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.gives = SlotFlags(num_slots)
        """Whether a request gives any."""
        self.first = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Position of the first one."""
        self.tokens = BlockTable(num_slots, (1,), torch.int64, device, fill=GAP)
        """[num_slots, longest] int64: from there on; `GAP` where nothing is given."""

    def add_request(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        first, tokens = decoding.given
        self.gives[slot] = len(tokens) > 0
        self.first[slot] = plan.grid.origin + first
        self.tokens.clear(slot)
        self.tokens.grow(len(tokens))
        self.tokens.restore(slot, torch.tensor(tokens, dtype=torch.int64))

    def any(self, slot_np: np.ndarray) -> bool:
        """Whether some request of a batch gives any; slot_np: [n] int64, on the CPU."""
        return self.gives.any_of(slot_np)

    def at(self, slot: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The tokens given at some positions, `GAP` where none is.

        slot, position: int64 of shapes that go together.
        """
        column = position - self.first[slot]
        tokens = self.tokens.values
        last = tokens.shape[1] - 1
        inside = (column >= 0) & (column <= last)
        return torch.where(inside, tokens[slot, column.clamp(0, last)], GAP)
