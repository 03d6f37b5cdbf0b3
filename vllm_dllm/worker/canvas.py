"""Canvas: the block under denoising of every request slot, and its parameters.

Slot-indexed tensors, as in vLLM's `RequestState`: a request owns one slot while it runs
on the worker. Columns of a row are the positions of the block that the request is
denoising; those left of its known tokens are not read. What lies past the block is
masks, so nothing is kept of it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.decoding.time_grid import time_grid
from vllm_dllm.params import NUMERIC_FIELDS
from vllm_dllm.request import Decoding
from vllm_dllm.span import FullAttention, Plan


@dataclass
class CanvasBatch:
    """The blocks of the `n` requests of a step, gathered from their slots.

    `width` is the length of the longest of them; shorter ones leave columns unused.
    """

    slot: torch.Tensor
    """[n] int64."""
    known: torch.Tensor
    """[n] int64: number of known tokens."""
    start: torch.Tensor
    """[n] int64: first position of the block."""
    length: torch.Tensor
    """[n] int64: number of positions of the block."""
    active: torch.Tensor
    """[n] bool: whether the step decides any; False in a prefill chunk."""
    step: torch.Tensor
    """[n] int64: steps that the block has already taken."""
    post_steps: torch.Tensor
    """[n] int64: of these, and of this one, how many began without a mask."""
    tokens: torch.Tensor
    """[n, width] int64; undefined left of the known tokens and past the block."""
    masked: torch.Tensor
    """[n, width] bool: positions of the canvas that are still masks."""
    editable: torch.Tensor
    """[n, width] bool: the other positions of the canvas."""
    decided_at: torch.Tensor
    """[n, width] int64: the step of the block that wrote each token."""
    cell: tuple[torch.Tensor, torch.Tensor]
    """Index into [n, width] of the positions that logits are computed for: [rows],
    [rows] int64. Holds all of `masked`."""
    whole: bool
    """Whether `cell` holds all positions, one block after the other."""
    guided: torch.Tensor | None = None
    """[guided rows] int64: those cells whose logits are guided; None if there is no
    guided request."""

    @property
    def first(self) -> torch.Tensor:
        """[n] int64: the first column of the canvas."""
        return self.known - self.start

    @property
    def position(self) -> torch.Tensor:
        """[n, width] int64: absolute positions."""
        column = torch.arange(self.tokens.shape[1], device=self.known.device)
        return self.start.unsqueeze(1) + column

    def rows_of(self, chosen: np.ndarray) -> torch.Tensor:
        """[m] int64: the rows of logits that belong to some of the requests.

        Args:
            chosen: [n] bool, on the CPU.
        """
        if self.whole:
            rows = np.flatnonzero(np.repeat(chosen, self.tokens.shape[1]))
            return async_tensor_h2d(rows, self.slot.device)
        return torch.from_numpy(chosen)[self.cell[0]].nonzero().squeeze(1)

    def write(self, where: torch.Tensor, tokens: torch.Tensor) -> None:
        """Put `tokens` where `where` says; both [n, width]."""
        self.tokens = torch.where(where, tokens, self.tokens)
        self.masked &= ~where
        self.decided_at = torch.where(where, self.step.unsqueeze(1), self.decided_at)

    def sequence(self, index: int, all_token_ids: torch.Tensor) -> torch.Tensor:
        """The tokens of request `index` up to the end of its block; -1 for a mask.

        Args:
            all_token_ids: [num_slots, max_len], known tokens of all slots.
        """
        known, first = int(self.known[index]), int(self.first[index])
        head = all_token_ids[self.slot[index], :known].long()
        block = self.tokens[index].masked_fill(self.masked[index], -1)
        return torch.cat([head, block[first : int(self.length[index])]])


@dataclass
class SavedBlock:
    """The denoising state of a request that has no slot."""

    tokens: torch.Tensor
    """[width] int64."""
    decided_at: torch.Tensor
    """[width] int64."""
    step: int
    post_steps: int
    history: tuple[torch.Tensor, torch.Tensor] | None


class Canvas:
    def __init__(
        self,
        num_slots: int,
        width: int,
        mask_token_id: int,
        device: torch.device,
        full_attention: bool = False,
    ) -> None:
        """`width`: of the blocks; grows when a request has a longer one."""
        self.mask_token_id = mask_token_id
        self.full_attention = full_attention
        self.whole_blocks = device.type != "cpu"
        """Whether logits are computed of all positions of a block: how many are masks
        is known on the device alone, and to wait for the number of a GPU costs more
        than the rows it saves."""

        # Set by the sampler, step by step.
        self.tokens = torch.full(
            (num_slots, width), mask_token_id, dtype=torch.int64, device=device
        )
        self.decided_at = torch.zeros_like(self.tokens)
        self.step = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.post_steps = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.history: tuple[torch.Tensor, torch.Tensor] | None = None
        """Tokens and values [num_slots, block, block] of rules that reshape logits
        (decoding/base.py); made when the first request wants it, and grows with the
        blocks of such requests alone."""

        # Set by add_request.
        self.params = {
            name: torch.zeros(
                num_slots,
                dtype=torch.float32 if kind is float else torch.int64,
                device=device,
            )
            for name, kind in NUMERIC_FIELDS.items()
        }
        self.origin = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.block = torch.ones(num_slots, dtype=torch.int64, device=device)
        self.end = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """The request's grid of blocks (span.py)."""
        self.block_np = np.ones(num_slots, dtype=np.int64)
        """The same on the CPU."""
        self.reuses = torch.zeros(num_slots, dtype=torch.bool, device=device)
        """Full attention: whether steps read keys of earlier steps."""
        self.twin = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Where the unconditional branch lies (span.py); 0 without guidance."""
        self.cfg_scale = torch.zeros(num_slots, device=device)
        self.suffix = torch.zeros(num_slots, 1, dtype=torch.int64, device=device)
        """What follows the canvas, left-aligned; grows with the longest."""
        self.seq_len = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Full attention: length of each sequence, the suffix included."""
        self.seq_len_np = np.zeros(num_slots, dtype=np.int64)
        self.infills_np = np.zeros(num_slots, dtype=bool)
        """Whether there is a suffix."""
        self.twin_np = np.zeros(num_slots, dtype=np.int64)
        self.max_len = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Known tokens (prompt and answer) at which the request ends."""
        self.algorithm = np.full(num_slots, "", dtype=object)
        self.revises = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.time: dict[int, torch.Tensor] = {}
        """Slot -> share of the masks that each step of a block decides, [steps]
        float32; of rules that want it."""
        self.traced: set[int] = set()
        """Slots whose request wants to know when its tokens were decided."""
        self.watched: set[int] = set()
        """Slots whose request wants to see every step of its block."""

        self._suspended: dict[str, SavedBlock] = {}

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    def add_request(
        self, req_id: str, slot: int, params: Decoding, plan: Plan, max_len: int
    ) -> None:
        """Start the request's first block, or go on where it was preempted."""
        rule, grid = get_rule(params.algorithm), plan.grid
        for name, value in params.parameters.items():
            self.params[name][slot] = value
        self.origin[slot], self.block[slot], self.end[slot] = grid
        self.block_np[slot] = grid.block
        if isinstance(plan, FullAttention):
            self.reuses[slot] = plan.cache != "none"
            self.twin[slot] = plan.twin
            self.cfg_scale[slot] = params.cfg_scale
            self.seq_len[slot] = self.seq_len_np[slot] = plan.end
            self.twin_np[slot], self.infills_np[slot] = plan.twin, plan.suffix > 0
            if plan.suffix:
                self._append(slot, params.suffix_token_ids)
        self.max_len[slot] = max_len
        self.algorithm[slot] = params.algorithm
        self.revises[slot] = rule.revises
        for slots, wanted in (
            (self.traced, params.return_trajectory),
            (self.watched, params.stream_drafts),
        ):
            (slots.add if wanted else slots.discard)(slot)
        self._widen(grid.block)
        if rule.reshapes:
            self._remember(grid.block)
        self.time.pop(slot, None)
        if "time" in rule.needs:
            steps, eps = params.parameters["steps"], params.parameters["eps"]
            share = time_grid(int(steps), eps)
            self.time[slot] = share.to(self.step.device)
        saved = self._suspended.pop(req_id, None)
        self.tokens[slot] = self.mask_token_id
        self.decided_at[slot] = 0
        self.step[slot] = 0 if saved is None else saved.step
        self.post_steps[slot] = 0 if saved is None else saved.post_steps
        if saved is not None:
            width = len(saved.tokens)
            self.tokens[slot, :width] = saved.tokens
            self.decided_at[slot, :width] = saved.decided_at
            if saved.history is not None:
                assert self.history is not None
                for table, part in zip(self.history, saved.history, strict=True):
                    table[slot] = 0  # a longer block of another request was there
                    table[slot, :width, :width] = part

    def _widen(self, width: int) -> None:
        """Make room for blocks of `width` positions."""
        missing = width - self.width
        if missing > 0:
            pad = torch.nn.functional.pad
            self.tokens = pad(self.tokens, (0, missing), value=self.mask_token_id)
            self.decided_at = pad(self.decided_at, (0, missing))

    def _append(self, slot: int, suffix: tuple[int, ...]) -> None:
        """Put `suffix` behind the canvas."""
        missing = len(suffix) - self.suffix.shape[1]
        if missing > 0:
            self.suffix = torch.nn.functional.pad(self.suffix, (0, missing))
        self.suffix[slot, : len(suffix)] = torch.tensor(suffix)

    def _remember(self, width: int) -> None:
        """Make room for what a rule remembers of a block of `width` positions."""
        if self.history is None:
            tokens = self.tokens.new_zeros(len(self.tokens), width, width)
            self.history = tokens, torch.zeros_like(tokens, dtype=torch.float32)
        missing = width - self.history[0].shape[1]
        if missing > 0:
            tokens, values = self.history
            pad, both = torch.nn.functional.pad, (0, missing, 0, missing)
            self.history = pad(tokens, both), pad(values, both)

    def gather(
        self,
        slot: torch.Tensor,
        slot_np: np.ndarray,
        known: torch.Tensor,
        active: torch.Tensor,
    ) -> CanvasBatch:
        """The blocks of a step; arguments as in `CanvasBatch`."""
        width = int(self.block_np[slot_np].max())
        tokens = self.tokens[slot, :width]
        start, length = self.block_of(slot, known)
        column = torch.arange(width, device=slot.device)
        in_canvas = (
            active.unsqueeze(1)
            & (column >= (known - start).unsqueeze(1))
            & (column < length.unsqueeze(1))
        )
        is_mask = tokens == self.mask_token_id
        masked, editable = in_canvas & is_mask, in_canvas & ~is_mask
        if self.whole_blocks:
            index = torch.arange(masked.numel(), device=slot.device)
            request, position = index // width, index % width
        else:
            wanted = masked | (editable & self.revises[slot].unsqueeze(1))
            request, position = wanted.nonzero(as_tuple=True)
        began_without_mask = active & ~masked.any(dim=1)
        batch = CanvasBatch(
            slot=slot,
            known=known,
            start=start,
            length=length,
            active=active,
            step=self.step[slot],
            post_steps=self.post_steps[slot] + began_without_mask,
            tokens=tokens,
            masked=masked,
            editable=editable,
            decided_at=self.decided_at[slot, :width],
            cell=(request, position),
            whole=self.whole_blocks,
        )
        if self.any_guided(slot_np):
            batch.guided = batch.rows_of(self.twin_np[slot_np] > 0)
        return batch

    def any_infilling(self, slot_np: np.ndarray) -> bool:
        """Whether one of the slots has a suffix."""
        return bool(self.infills_np[slot_np].any())

    def suffix_at(
        self, slot: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of some positions lie in the suffixes of their requests, [n] bool, and
        the tokens there, undefined elsewhere; all [n] int64."""
        end = self.end[slot]
        column = (position - end).clamp(0, self.suffix.shape[1] - 1)
        inside = (position >= end) & (position < self.seq_len[slot])
        return inside, self.suffix[slot, column]

    def any_guided(self, slot_np: np.ndarray) -> bool:
        """Whether one of the slots has an unconditional branch."""
        return bool(self.twin_np[slot_np].any())

    def twin_row(
        self, slot: torch.Tensor, span_start: torch.Tensor, length: torch.Tensor
    ) -> torch.Tensor:
        """How many rows after those of a span its unconditional branch follows.

        As `Span.length` lays them out; all [n] int64, undefined without guidance.
        """
        return torch.where(span_start == 0, self.twin[slot], length // 2)

    def next_start(
        self,
        slot: torch.Tensor,
        span_end: torch.Tensor,
        known: torch.Tensor,
        known_after: torch.Tensor,
    ) -> torch.Tensor:
        """First position of the next step, as `Plan.next_start`; all [n] int64."""
        if not self.full_attention:
            return self.block_of(slot, torch.minimum(span_end, known))[0]
        start = self.block_of(slot, known)[0]
        same_block = self.block_of(slot, known_after)[0] == start
        return torch.where(same_block & self.reuses[slot], start, 0)

    def time_share(self, batch: CanvasBatch, slot_np: np.ndarray) -> torch.Tensor:
        """[n] float32: share of the masks that Dream's rules decide in this step; 0 for
        other rules. `slot_np`: the batch's slots on the CPU."""
        share = torch.zeros(len(slot_np), device=batch.step.device)
        for index, slot in enumerate(slot_np.tolist()):
            if (grid := self.time.get(slot)) is not None:
                step = batch.step[index : index + 1].clamp(max=len(grid) - 1)
                share[index : index + 1] = grid.index_select(0, step)
        return share

    def block_of(
        self, slot: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """First position and length of the block that holds position `known` (as
        `Grid.start_of` and `Grid.end_of`); all [n] int64."""
        origin, block = self.origin[slot], self.block[slot]
        start = origin + (known - origin) // block * block
        return start, torch.minimum(block, self.end[slot] - start)

    def scatter(self, batch: CanvasBatch, finished: torch.Tensor) -> None:
        """Store the blocks after a step; those in `finished` make room for the next.

        Args:
            finished: [n] bool: every token of the block was handed out.
        """
        slot, width = batch.slot, batch.tokens.shape[1]
        self.tokens[slot, :width] = batch.tokens.masked_fill(
            finished.unsqueeze(1), self.mask_token_id
        )
        self.decided_at[slot, :width] = batch.decided_at
        self.step[slot] = (batch.step + batch.active).masked_fill(finished, 0)
        self.post_steps[slot] = batch.post_steps.masked_fill(finished, 0)

    def suspend(self, req_id: str, slot: int) -> None:
        """Keep the block of a request that is about to lose its slot.

        Positions decoded out of order are not known to the scheduler. Masking them
        again would decode them in another order, and so to other tokens.
        """
        block = slice(int(self.block_np[slot]))
        history = None
        if self.history is not None and get_rule(self.algorithm[slot]).reshapes:
            tokens, values = self.history
            history = (
                tokens[slot, block, block].clone(),
                values[slot, block, block].clone(),
            )
        self._suspended[req_id] = SavedBlock(
            self.tokens[slot, block].clone(),
            self.decided_at[slot, block].clone(),
            int(self.step[slot]),
            int(self.post_steps[slot]),
            history,
        )

    def forget(self, req_id: str) -> None:
        """Drop what was kept for a request that has ended."""
        self._suspended.pop(req_id, None)
