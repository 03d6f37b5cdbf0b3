"""Sampling parameters of every request slot, and the candidates that they give."""

import hashlib

import numpy as np
import torch
from vllm.sampling_params import SamplingParams

from vllm_dllm.config import Facts
from vllm_dllm.ops.candidate import TILE, Candidates, candidates, entropy, margin
from vllm_dllm.ops.noise import uniform
from vllm_dllm.ops.sample import SamplingFilters, sample
from vllm_dllm.request import Decoding
from vllm_dllm.worker.canvas import CanvasBatch
from vllm_dllm.worker.logits import LogitsRules

SWITCHES = ("top_k", "top_p", "min_p", "no_eos", "late_end")
"""What of a request changes rows of logits, if it is switched on."""
TOKEN_STREAM, ORDER_STREAM = 0, 1
"""Independent random numbers of a position: its token, and its place in the order."""


class Sampling:
    """Slot-indexed, as `Canvas`."""

    def __init__(
        self,
        num_slots: int,
        vocab: int,
        device: torch.device,
        facts: Facts,
    ) -> None:
        self.vocab = vocab
        self.facts = facts
        self.temperature = torch.zeros(num_slots, device=device)
        self.top_k = torch.full((num_slots,), vocab, dtype=torch.int64, device=device)
        self.top_p = torch.ones(num_slots, device=device)
        self.min_p = torch.zeros(num_slots, device=device)
        self.uses = {name: np.zeros(num_slots, dtype=bool) for name in SWITCHES}
        """On the CPU: the slots that have each of them switched on."""
        self.seed = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.plain = np.ones(num_slots, dtype=bool)
        """Slots whose candidate is the most likely token of the model's own logits."""
        self.rules: dict[int, LogitsRules] = {}
        self.no_eos = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.late_end = torch.zeros(num_slots, dtype=torch.bool, device=device)
        """Whether ends of text and of turn are left out of the confidence."""

    def add_request(
        self,
        req_id: str,
        slot: int,
        params: SamplingParams,
        prompt_len: int,
        dllm: Decoding,
    ) -> None:
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k if params.top_k > 0 else self.vocab
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.uses["top_k"][slot] = 0 < params.top_k < self.vocab
        self.uses["top_p"][slot] = params.top_p < 1
        self.uses["min_p"][slot] = params.min_p > 0
        self.uses["no_eos"][slot] = dllm.logits_eos_inf
        self.uses["late_end"][slot] = dllm.confidence_eos_eot_inf
        seed = _seed_of(req_id) if params.seed is None else params.seed
        # Children of a request with n > 1 have larger seeds, which may leave 64 bits.
        self.seed[slot] = (seed + 2**63) % 2**64 - 2**63
        self.rules.pop(slot, None)
        if LogitsRules.needed(params):
            self.rules[slot] = LogitsRules(params, prompt_len, self.vocab)
        self.no_eos[slot] = dllm.logits_eos_inf
        self.late_end[slot] = dllm.confidence_eos_eot_inf
        self.plain[slot] = (
            params.temperature == 0
            and slot not in self.rules
            and not dllm.logits_eos_inf
            and not dllm.confidence_eos_eot_inf
        )

    def order_noise(self, batch: CanvasBatch) -> torch.Tensor:
        """[n, width] float32 in [0, 1)."""
        noise = uniform(
            self.seed[batch.slot].unsqueeze(1),
            batch.position,
            batch.step.unsqueeze(1),
            ORDER_STREAM,
        )
        # Rounding to float32 must not make 1 of it.
        return noise.float().clamp(max=1 - 2**-24)

    def propose(
        self,
        logits: torch.Tensor,
        batch: CanvasBatch,
        slot_np: np.ndarray,
        mask_token_id: int,
        needs: set[str],
        all_token_ids: torch.Tensor,
    ) -> Candidates:
        """A candidate for each row.

        Args:
            logits: [rows, vocab], those of `batch.cell`; the mask's column is lost.
            slot_np: [n] slots of the batch, on the CPU.
            needs: "entropy", "margin": what rules of the batch read besides confidence.
            all_token_ids: [num_slots, max_len], known tokens of all slots.
        """
        found = candidates(logits, mask_token_id, measures=bool(needs))
        is_plain = self.plain[slot_np]
        if is_plain.all():
            return found
        rows = batch.rows_of(~is_plain)
        logits[:, mask_token_id] = float("-inf")
        uses = {name: bool(slots[slot_np].any()) for name, slots in self.uses.items()}
        for tile in rows.split(TILE):
            self._propose_tile(found, logits, batch, slot_np, tile, all_token_ids, uses)
        return found

    def _propose_tile(
        self,
        found: Candidates,
        logits: torch.Tensor,
        batch: CanvasBatch,
        slot_np: np.ndarray,
        rows: torch.Tensor,
        all_token_ids: torch.Tensor,
        uses: dict[str, bool],
    ) -> None:
        request, column = batch.cell[0][rows], batch.cell[1][rows]
        slot, position = batch.slot[request], batch.position[request, column]
        tile = logits[rows].float()
        for index in np.flatnonzero([s in self.rules for s in slot_np]):
            mine = (request == index).nonzero().squeeze(1)
            if len(mine):
                sequence = batch.sequence(int(index), all_token_ids)
                part = tile[mine]
                self.rules[slot_np[index]].apply(part, position[mine], sequence)
                tile[mine] = part
        if uses["no_eos"]:
            self._ban_eos(tile, slot)
        clean = tile.softmax(dim=1) if self.facts.clean_confidence else None
        noise = uniform(self.seed[slot], position, batch.step[request], TOKEN_STREAM)
        filters = SamplingFilters(
            temperature=self.temperature[slot],
            top_k=self.top_k[slot] if uses["top_k"] else None,
            top_p=self.top_p[slot] if uses["top_p"] else None,
            min_p=self.min_p[slot] if uses["min_p"] else None,
        )
        token, probs = sample(tile, filters, noise)
        if clean is not None:
            probs = clean
        if uses["late_end"]:
            probs = self._without_ends(probs, slot)
        found.token[rows] = token
        found.confidence[rows] = probs.gather(1, token.unsqueeze(1)).squeeze(1)
        if found.entropy is not None and found.margin is not None:
            found.entropy[rows] = entropy(probs)
            found.margin[rows] = margin(probs)

    def _ban_eos(self, logits: torch.Tensor, slot: torch.Tensor) -> None:
        """Take the end of the text from requests that never want it, where there is
        another token.

        Args:
            logits: [rows, vocab]; changed in place.
            slot: [rows].
        """
        if self.facts.eos_token_id is None:
            return
        eos, banned = logits[:, self.facts.eos_token_id], self.no_eos[slot]
        eos.masked_fill_(banned, float("-inf"))
        eos.masked_fill_(banned & (logits.amax(dim=1) == float("-inf")), 0)

    def _without_ends(self, probs: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        """Take ends out of the probabilities of those requests that want them last.

        LLaDA's `generate` with `confidence_eos_eot_inf`: with a temperature it misses
        the end of the text, and so do we.

        Args:
            probs: [rows, vocab]; changed in place.
            slot: [rows].
        """
        late = self.late_end[slot]
        greedy = self.temperature[slot] == 0
        ends = (
            (self.facts.eot_token_id, late),
            (self.facts.eos_token_id, late & greedy),
        )
        for token, rows in ends:
            if token is not None:
                probs[:, token].masked_fill_(rows, 0)
        tiny = torch.finfo(probs.dtype).tiny
        total = probs.sum(dim=1, keepdim=True).clamp(min=tiny)
        return torch.where(late.unsqueeze(1), probs / total, probs)

    def drop_bad_words(
        self,
        write: torch.Tensor,
        candidate: torch.Tensor,
        confidence: torch.Tensor,
        batch: CanvasBatch,
        slot_np: np.ndarray,
        all_token_ids: torch.Tensor,
    ) -> None:
        """Take back writes of this step that make a bad word together.

        Args:
            write: [n, width] bool; changed in place.
            candidate: [n, width] int64; confidence: [n, width] float32.
        """
        for index, slot in enumerate(slot_np):
            rules = self.rules.get(slot)
            if rules is None or not rules.bad_words:
                continue
            before = batch.sequence(index, all_token_ids)
            length = int(batch.length[index])
            start, block = len(before) - length, slice(length)
            after, sure = before.clone(), torch.zeros(len(before), device=write.device)
            after[start:] = torch.where(
                write[index, block], candidate[index, block], before[start:]
            )
            sure[start:] = confidence[index, block]
            for place in rules.conflicts(before, after, sure, start):
                write[index, place - start] = False


def _seed_of(req_id: str) -> int:
    """The same on every rank, and after preemption."""
    return int.from_bytes(hashlib.blake2b(req_id.encode(), digest_size=7).digest())
