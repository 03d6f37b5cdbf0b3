"""Sampling parameters of every request slot, and the candidates that they give."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_dllm.config import Facts
from vllm_dllm.ops.candidate import TILE, Candidates, candidates, entropy, margin
from vllm_dllm.ops.noise import uniform
from vllm_dllm.ops.sample import SamplingFilters, sample
from vllm_dllm.settled import Decoding
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.logits import LogitsRules
from vllm_dllm.worker.slot_flags import SlotFlags

SWITCHES = ("temperature", "top_k", "top_p", "min_p", "no_eos", "late_end", "rules")
"""What of a request changes its candidates, if it is switched on. `late_end`: ends of
text and of turn are left out of the confidence."""
TOKEN_STREAM, ORDER_STREAM = 0, 1
"""Independent random numbers of a position: its token, and its place in the order."""


@dataclass
class StepSampling:
    """What the requests of a step ask for, each [n]; None where none of them does."""

    top_k: torch.Tensor | None
    top_p: torch.Tensor | None
    min_p: torch.Tensor | None
    no_eos: torch.Tensor | None
    """bool."""
    late_end: torch.Tensor | None
    """bool."""
    rules: list[tuple[int, LogitsRules, torch.Tensor]]
    """Index in the batch, its rules, its tokens so far (`CanvasBatch.sequence`)."""


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
        self.device = device
        self.temperature = torch.zeros(num_slots, device=device)
        self.top_k = torch.full((num_slots,), vocab, dtype=torch.int64, device=device)
        self.top_p = torch.ones(num_slots, device=device)
        self.min_p = torch.zeros(num_slots, device=device)
        self.seed = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.uses = {name: np.zeros(num_slots, dtype=bool) for name in SWITCHES}
        """On the CPU: the slots that have each of them switched on."""
        self.chooses = SlotFlags(num_slots)
        """The slots that do not take the most likely token of the model's
        own logits."""
        self.rules: dict[int, LogitsRules] = {}

    def add_request(
        self,
        req_id: str,
        slot: int,
        params: SamplingParams,
        prompt_len: int,
        decoding: Decoding,
    ) -> None:
        # As vLLM: 0 and less, and more than the vocabulary, are all of it.
        top_k = params.top_k if 0 < params.top_k < self.vocab else self.vocab
        self.temperature[slot] = params.temperature
        self.top_k[slot] = top_k
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        seed = _seed_of(req_id) if params.seed is None else params.seed
        # Children of a request with n > 1 have larger seeds, which may leave 64 bits.
        self.seed[slot] = (seed + 2**63) % 2**64 - 2**63
        self.drop(slot)
        if LogitsRules.needed(params):
            self.rules[slot] = LogitsRules(params, prompt_len, self.vocab)
        switched_on = {
            "temperature": params.temperature != 0,
            "top_k": top_k < self.vocab,
            "top_p": params.top_p < 1,
            "min_p": params.min_p > 0,
            "no_eos": decoding.logits_eos_inf,
            "late_end": decoding.confidence_eos_eot_inf,
            "rules": slot in self.rules,
        }
        for name, is_on in switched_on.items():
            self.uses[name][slot] = is_on
        # Filters alone change nothing: the most likely token stays.
        changing = ("temperature", "no_eos", "late_end", "rules")
        self.chooses[slot] = any(switched_on[name] for name in changing)

    def drop(self, slot: int) -> None:
        """Drop what is kept for a request that leaves its slot."""
        self.rules.pop(slot, None)

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
        mask_token_id: int,
        measures: bool,
        all_token_ids: torch.Tensor,
    ) -> Candidates:
        """A candidate for each row.

        Args:
            logits: [rows, vocab], those of `batch.cell`; the mask's column is lost.
            measures: whether a rule of the batch reads entropy or margin.
            all_token_ids: [num_slots, max_len], known tokens of all slots.
        """
        found = candidates(logits, mask_token_id, measures=measures)
        slot_np = batch.spans.slot_np
        if not self.chooses.any_of(slot_np):
            return found
        rows = batch.rows_of(self.chooses.of(slot_np))
        if not len(rows):  # the step computes only keys for them
            return found
        if batch.spans.adapts and not self.facts.clean_confidence:
            # Dream's AdaBlock looks for delimiters among them.
            token, sure = found.token.clone(), found.confidence.clone()
            found.undrawn = Candidates(token, sure)
        logits[:, mask_token_id] = float("-inf")
        step = self._of_step(batch, all_token_ids)
        for tile in rows.split(TILE):
            self._propose_tile(found, logits, batch, tile, step)
        return found

    def _of_step(self, batch: CanvasBatch, all_token_ids: torch.Tensor) -> StepSampling:
        slot, slot_np = batch.spans.slot, batch.spans.slot_np
        uses = {name: slots[slot_np] for name, slots in self.uses.items()}

        def flags(name: str) -> torch.Tensor | None:
            return (
                async_tensor_h2d(uses[name], self.device) if uses[name].any() else None
            )

        return StepSampling(
            top_k=self.top_k[slot] if uses["top_k"].any() else None,
            top_p=self.top_p[slot] if uses["top_p"].any() else None,
            min_p=self.min_p[slot] if uses["min_p"].any() else None,
            no_eos=flags("no_eos"),
            late_end=flags("late_end"),
            rules=[
                (
                    index,
                    self.rules[slot_np[index]],
                    batch.sequence(index, all_token_ids),
                )
                for index in np.flatnonzero(uses["rules"]).tolist()
            ],
        )

    def _propose_tile(
        self,
        found: Candidates,
        logits: torch.Tensor,
        batch: CanvasBatch,
        rows: torch.Tensor,
        step: StepSampling,
    ) -> None:
        block, position = batch.cell[0][rows], batch.cell_position[rows]
        slot = batch.slot[block]
        request = batch.request[rows]
        tile = logits[rows].float()
        for index, rules, sequence in step.rules:
            mine = (request == index).nonzero().squeeze(1)
            if len(mine):
                part = tile[mine]
                rules.apply(part, position[mine], sequence)
                tile[mine] = part
        if step.no_eos is not None:
            self._ban_eos(tile, step.no_eos[request])
        clean = tile.softmax(dim=1) if self.facts.clean_confidence else None
        noise = uniform(self.seed[slot], position, batch.step[block], TOKEN_STREAM)
        temperature = self.temperature[slot]
        filters = SamplingFilters(
            temperature=temperature,
            top_k=None if step.top_k is None else step.top_k[request],
            top_p=None if step.top_p is None else step.top_p[request],
            min_p=None if step.min_p is None else step.min_p[request],
        )
        token, probs = sample(tile, filters, noise)
        if clean is not None:
            probs = clean
        if step.late_end is not None:
            probs = self._without_ends(probs, step.late_end[request], temperature == 0)
        found.token[rows] = token
        found.confidence[rows] = probs.gather(1, token.unsqueeze(1)).squeeze(1)
        if found.entropy is not None and found.margin is not None:
            found.entropy[rows] = entropy(probs)
            found.margin[rows] = margin(probs)

    def _ban_eos(self, logits: torch.Tensor, banned: torch.Tensor) -> None:
        """Take the end of the text from requests that never want it, where there is
        another token.

        Args:
            logits: [rows, vocab]; changed in place.
            banned: [rows] bool.
        """
        if self.facts.eos_token_id is None:
            return
        eos = logits[:, self.facts.eos_token_id]
        eos.masked_fill_(banned, float("-inf"))
        eos.masked_fill_(banned & (logits.amax(dim=1) == float("-inf")), 0)

    def _without_ends(
        self, probs: torch.Tensor, late: torch.Tensor, greedy: torch.Tensor
    ) -> torch.Tensor:
        """Take ends out of the probabilities of those requests that want them last.

        LLaDA's `generate` with `confidence_eos_eot_inf`: with a temperature it misses
        the end of the text, and so do we.

        Args:
            probs: [rows, vocab]; changed in place.
            late, greedy: [rows] bool.
        """
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
        all_token_ids: torch.Tensor,
    ) -> None:
        """Take back writes of this step that make a bad word together.

        Args:
            write: [n, width] bool; changed in place.
            candidate: [n, width] int64; confidence: [n, width] float32.
        """
        if not self.rules:
            return
        slot_np = batch.spans.slot_np
        for index in np.flatnonzero(self.uses["rules"][slot_np]).tolist():
            rules = self.rules[slot_np[index]]
            if not rules.bad_words:
                continue
            before = batch.sequence(index, all_token_ids)
            canvas, cell = (
                batch.canvas_of,
                torch.arange(write.numel()).view(write.shape),
            )
            written, places = canvas(index, write), canvas(index, cell)
            start = len(before) - len(written)
            after, sure = before.clone(), torch.zeros(len(before), device=write.device)
            tokens = canvas(index, candidate)
            after[start:] = torch.where(written, tokens, before[start:])
            sure[start:] = canvas(index, confidence)
            for place in rules.conflicts(before, after, sure, start):
                write.view(-1)[places[place - start]] = False


def _seed_of(req_id: str) -> int:
    """The same on every rank, and after preemption."""
    return int.from_bytes(hashlib.blake2b(req_id.encode(), digest_size=7).digest())
