"""RuleTables: the decoding rule of every slot, its parameters, and its memory."""

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.decoding.base import RememberingRule
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.decoding.time_grid import time_grid
from vllm_dllm.params import NUMERIC_FIELDS
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.batch_rules import BatchRules, RuleShare
from vllm_dllm.worker.memory import BlockTable
from vllm_dllm.worker.slot_flags import SlotFlags


class RuleTables:
    """A `BlockState`: what a rule remembers of a block."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.device = device
        self.parameters = {
            name: torch.zeros(
                num_slots,
                dtype=torch.float32 if kind is float else torch.int64,
                device=device,
            )
            for name, kind in {**NUMERIC_FIELDS, "block_length": int}.items()
        }
        self.busy_threshold = torch.zeros(num_slots, device=device)
        """`threshold` in steps of a busy server."""
        self.algorithm = np.full(num_slots, "", dtype=object)
        self.revises = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.may_revise = SlotFlags(num_slots)
        """The same on the CPU."""
        self.time = torch.ones(num_slots, 1, device=device)
        """[num_slots, steps] float32: share of the masks that each step of a block
        decides, by rules that want it; grows with the longest grid."""
        self.memory: dict[str, BlockTable] = {}
        """What rules remember (decoding/base.py), by name; each made when the first
        request wants it, and as wide as the blocks of such requests alone."""
        self._last: tuple[tuple[bytes, bool], BatchRules] | None = None
        """The last answer of `of_batch` and what was asked, while no slot has
        changed."""

    def add_request(self, slot: int, decoding: Decoding, block: int) -> None:
        """`block`: length of the request's blocks."""
        self._last = None
        rule = get_rule(decoding.algorithm)
        for name, value in decoding.parameters.items():
            self.parameters[name][slot] = value
        busy = decoding.busy_threshold
        own = decoding.parameters.get("threshold", 0)
        self.busy_threshold[slot] = own if busy is None else busy
        self.algorithm[slot] = decoding.algorithm
        self.revises[slot] = self.may_revise[slot] = rule.revises
        if "time" in rule.needs:
            steps = int(decoding.parameters["steps"])
            eps = decoding.parameters.get("eps", 0)
            self._set_time(slot, time_grid(steps, eps))
        for name, dtype in rule.memory.items():
            steps = cast(RememberingRule, rule).memory_steps(block, decoding.parameters)
            if name not in self.memory:
                slots = len(self.algorithm)
                shape = (block, steps)
                self.memory[name] = BlockTable(slots, shape, dtype, self.device)
            self.memory[name].grow(block, steps)
            self.memory[name].clear(slot)

    def _set_time(self, slot: int, share: torch.Tensor) -> None:
        """Past the last step of the grid, all masks are decided."""
        missing = len(share) - self.time.shape[1]
        if missing > 0:
            self.time = torch.nn.functional.pad(self.time, (0, missing), value=1.0)
        self.time[slot] = 1.0
        self.time[slot, : len(share)] = share.to(self.device)

    def save(self, slot: int) -> dict[str, torch.Tensor]:
        names = get_rule(self.algorithm[slot]).memory
        return {name: self.memory[name].save(slot) for name in names}

    def restore(self, slot: int, saved: dict[str, torch.Tensor]) -> None:
        for name, values in saved.items():
            self.memory[name].restore(slot, values)

    def recall(
        self, name: str, slot: torch.Tensor, step: torch.Tensor, width: int
    ) -> dict[str, torch.Tensor]:
        """What a rule remembers of some blocks, each [n, width, steps].

        slot, step: [n] int64.
        """
        # What is there before the first step is of the slot's last block.
        begins = (step == 0).view(-1, 1, 1)
        tables = {n: self.memory[n] for n in get_rule(name).memory}
        for table in tables.values():
            table.grow(width, 0)
        return {
            n: table.values[slot, :width].masked_fill(begins, 0)
            for n, table in tables.items()
        }

    def remember(self, slot: torch.Tensor, memory: dict[str, torch.Tensor]) -> None:
        """Keep what `recall` gave, as the rule has changed it."""
        for name, values in memory.items():
            self.memory[name].values[slot, : values.shape[1]] = values

    def of(self, slot_np: np.ndarray) -> list[str]:
        """The rules of a batch, each once.

        slot_np: [m] int64, on the CPU.
        """
        return list(dict.fromkeys(self.algorithm[slot_np]))

    def of_batch(
        self, slot: torch.Tensor, slot_np: np.ndarray, is_busy: bool
    ) -> BatchRules:
        """The rules of the blocks of a step.

        Args:
            slot: [m] int64; slot_np: the same on the CPU.
            is_busy: whether requests that allow it take the threshold of a busy server.
        """
        asked = slot_np.tobytes(), is_busy
        if self._last is None or self._last[0] != asked:
            names, shares = self.of(slot_np), []
            for name in names:
                rows = self.where(name, slot_np) if len(names) > 1 else None
                own = slot if rows is None else slot[rows]
                params = self.parameters_of(name, own, is_busy)
                shares.append(RuleShare(name, get_rule(name), rows, own, params))
            self._last = asked, BatchRules(shares, needs_of(names))
        return self._last[1]

    def where(self, name: str, slot_np: np.ndarray) -> torch.Tensor:
        """[k] int64: which of [m] slots have a rule."""
        index = np.flatnonzero(self.has(name, slot_np))
        return async_tensor_h2d(index, self.device)

    def has(self, name: str, slot_np: np.ndarray) -> np.ndarray:
        """[m] bool, on the CPU: whether a slot has the rule."""
        return self.algorithm[slot_np] == name

    def which_need(self, what: str, slot_np: np.ndarray) -> torch.Tensor:
        """[m] bool: which of [m] slots have a rule that reads it."""
        found = np.zeros(len(slot_np), dtype=bool)
        for name in self.of(slot_np):
            if what in get_rule(name).needs:
                found |= self.has(name, slot_np)
        return async_tensor_h2d(found, self.device)

    def parameters_of(
        self, name: str, slot: torch.Tensor, is_busy: bool = False
    ) -> dict[str, torch.Tensor]:
        """The parameters of a rule's requests, each [n]; slot: [n] int64."""
        found = {p: self.parameters[p][slot] for p in get_rule(name).parameters}
        if is_busy and "threshold" in found:
            found["threshold"] = self.busy_threshold[slot]
        return found

    def time_share(self, slot: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """[n] float32: share of the masks that Dream's rules decide in a step;
        undefined for other rules. slot, step: [n] int64."""
        return self.time[slot, step.clamp(max=self.time.shape[1] - 1)]


def needs_of(names: Iterable[str]) -> set[str]:
    """What the rules read besides confidence (decoding/base.py)."""
    return set().union(*(get_rule(name).needs for name in names))
