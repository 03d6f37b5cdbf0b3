"""AdaptiveBlocks: blocks that end where a delimiter is predicted (AdaBlock)."""

import numpy as np
import torch

from vllm_dllm.ops.choice import best
from vllm_dllm.plans.adaptive import Adaptive
from vllm_dllm.plans.base import Plan
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.memory import BlockTable


class AdaptiveBlocks:
    """By slot. A `BlockState`.

    Tokens of such a request become known in whole blocks, so a block begins at the
    number of known tokens.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.adapts_np = np.zeros(num_slots, dtype=bool)
        self.adapts = torch.zeros(num_slots, dtype=torch.bool, device=device)
        """Whether the request has such blocks."""
        self.default = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.window = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Those of its plan (plans/adaptive.py)."""
        self.threshold = torch.zeros(num_slots, device=device)
        self.delimiters = BlockTable(num_slots, (1,), torch.int64, device, fill=-1)
        """[num_slots, most of a request] int64; -1 where one has fewer."""
        self.found = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """End of the last block of which one was found."""

    def add_request(self, slot: int, decoding: Decoding, plan: Plan) -> None:
        self.found[slot] = 0
        self.adapts_np[slot] = self.adapts[slot] = isinstance(plan, Adaptive)
        if isinstance(plan, Adaptive):
            ids = decoding.delimiter_ids
            self.default[slot], self.window[slot] = plan.default, plan.window
            self.threshold[slot] = decoding.parameters["delimiter_threshold"]
            self.delimiters.grow(len(ids))
            self.delimiters.clear(slot)
            self.delimiters.restore(slot, torch.tensor(ids, dtype=torch.int64))

    def save(self, slot: int) -> int:
        return int(self.found[slot])

    def restore(self, slot: int, saved: int) -> None:
        self.found[slot] = saved

    def end_of(
        self, slot: torch.Tensor, known: torch.Tensor, longest: torch.Tensor
    ) -> torch.Tensor:
        """End of the block at the known tokens; `longest` where none was found yet.

        slot, known, longest: [n] int64 -> [n] int64.
        """
        found = self.found[slot]
        return torch.where(found > known, found, longest)

    def find(
        self,
        slot: torch.Tensor,
        room: torch.Tensor,
        begins: torch.Tensor,
        token: torch.Tensor,
        confidence: torch.Tensor,
    ) -> torch.Tensor:
        """Lengths of the `m` blocks of a step, some of which begin in it: [m] int64.

        Args:
            slot: [m] int64.
            room: [m] int64: length of a block that was found before, else the longest
                that it may have.
            begins: [m] bool: the step is the first one of its block.
            token: [m, width] int64: predicted ones; confidence: [m, width] float32.
        """
        begins = begins & self.adapts[slot]
        column = torch.arange(token.shape[1], device=token.device)
        delimiters = self.delimiters.values[slot].unsqueeze(1)
        ends = (token.unsqueeze(2) == delimiters).any(dim=2)
        ends &= column < torch.minimum(self.window[slot], room).unsqueeze(1)
        ends &= confidence >= self.threshold[slot].unsqueeze(1)
        one = ends.any(dim=1)
        # The surest of those that are sure enough.
        place = (best(confidence, ends, one.long()) * column).sum(dim=1)
        length = torch.where(one, place + 1, torch.minimum(self.default[slot], room))
        return torch.where(begins, length, room)

    def keep(
        self,
        slot: torch.Tensor,
        known: torch.Tensor,
        begins: torch.Tensor,
        length: torch.Tensor,
    ) -> torch.Tensor:
        """Keep where the blocks end that begin in a step, and say it: [m] int64, 0 of
        the others.

        slot, known, begins: as in `find`; length: what that found.
        """
        begins = begins & self.adapts[slot]
        end = known + length
        self.found[slot] = torch.where(begins, end, self.found[slot])
        return torch.where(begins, end, 0)
