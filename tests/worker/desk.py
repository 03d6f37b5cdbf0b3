"""A worker without a model: real slots, layout and sampler, and made-up logits.

Spans come from the plans, as the scheduler's do, and the start of every next
step is compared with what they say.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.decoding.registry import RULES, get_rule
from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.plans.base import Plan, Span
from vllm_dllm.regimes import window
from vllm_dllm.regimes.registry import regime_of
from vllm_dllm.request import decoding_of, plan_of
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.sampler import DenoisingSampler
from vllm_dllm.worker.slots import Slots
from vllm_dllm.worker.spans.batch import SpanBatch

VOCAB, MASK, EOS, EOT = 20, 19, 1, 2
DELETE, SPLIT = 17, 18
"""Of the family `moving`; tokens like all others elsewhere."""
MAX_LEN = 64
CPU = torch.device("cpu")
CREDIT = {"algorithm": "credit"}
"""The rule that keeps most of a block: it must not be left in a slot."""
FAMILIES = {
    "block-causal": Facts(eos_token_id=EOS, max_model_len=MAX_LEN, vocab_size=VOCAB),
    "seeded": Facts(
        attention="seeded",
        shifted_logits=True,
        eos_token_id=EOS,
        max_model_len=MAX_LEN,
        vocab_size=VOCAB,
    ),
    "moving": Facts(
        eos_token_id=EOS,
        max_model_len=MAX_LEN,
        vocab_size=VOCAB,
        delete_token_id=DELETE,
        split_token_id=SPLIT,
    ),
    "seeded-causal": Facts(
        attention="seeded_causal",
        clean_confidence=True,
        rule_names={"threshold": "confidence_threshold"},
        eos_token_id=EOS,
        max_model_len=MAX_LEN,
        vocab_size=VOCAB,
    ),
    "full": Facts(
        attention="full",
        clean_confidence=True,
        rule_names={"threshold": "confidence_threshold"},
        eos_token_id=EOS,
        eot_token_id=EOT,
        max_model_len=MAX_LEN,
        page_size=8,
        vocab_size=VOCAB,
    ),
    "window": Facts(
        attention="window",
        clean_confidence=True,
        rule_names={"sequential": "leftmost"},
        eos_token_id=EOS,
        max_model_len=MAX_LEN,
        vocab_size=VOCAB,
    ),
    "shifted": Facts(
        attention="full",
        shifted_logits=True,
        rule_names={"threshold": "confidence_threshold", "entropy": "neg_entropy"},
        eos_token_id=EOS,
        eot_token_id=EOT,
        max_model_len=MAX_LEN,
        page_size=8,
        vocab_size=VOCAB,
    ),
}
RULES_OF = {
    family: [
        rule
        for rule in (window.RULES if facts.attention == "window" else RULES)
        if (facts.moves is not None or "moves" not in get_rule(rule).needs)
        and (regime_of(facts).has_soft_tokens or not get_rule(rule).softens)
    ]
    for family, facts in FAMILIES.items()
}
"""The rules that a request to a family can have."""
FAMILIES_AND_RULES = [
    (family, rule) for family in FAMILIES for rule in RULES_OF[family]
]
Logits = Callable[[CanvasBatch, int], torch.Tensor]
"""[rows, vocab] for a batch of blocks and a number of rows."""


@dataclass
class Running:
    """A request of the desk."""

    name: str
    prompt: list[int]
    params: SamplingParams
    slot: int
    plan: Plan
    end: int
    """Known tokens at which it is done."""
    known: int
    computed: int = 0
    mark: int | None = None
    answer: list[int] = field(default_factory=list)

    def span(self) -> Span:
        return self.plan.span(self.computed, self.known, self.mark)


@dataclass
class Step:
    """What a step of the desk was."""

    planned: list[Span]
    input_batch: Any
    spans: SpanBatch
    batch: CanvasBatch
    """After the step."""
    token_ids: torch.Tensor
    """[num_tokens] int64: what the model was given."""
    rows: torch.Tensor
    """[rows] int64: hidden states that logits were computed of."""
    output: SamplerOutput


class Desk:
    def __init__(self, family: str, slots: int = 6, block: int = 4) -> None:
        self.config = DllmConfig.build(
            {"block_size": block, "mask_token_id": MASK}, facts=FAMILIES[family]
        )
        self.slots = Slots(self.config, slots, VOCAB, CPU)
        self.all_token_ids = torch.zeros(slots, MAX_LEN, dtype=torch.int32)
        vllms = SimpleNamespace(
            sampling_states=None,
            req_states=SimpleNamespace(
                all_token_ids=SimpleNamespace(gpu=self.all_token_ids)
            ),
        )
        self.sampler = DenoisingSampler(self.slots, vllms.req_states, vllms)
        self.running: dict[str, Running] = {}
        self.budget = 10 * MAX_LEN
        """Positions of a request that a step forwards at most."""

    def add(
        self,
        name: str,
        prompt: list[int],
        dllm: dict[str, Any] | None = None,
        slot: int | None = None,
        **asked: Any,
    ) -> Running:
        """Start a request with the `dllm_*` fields `dllm`, and `SamplingParams`.

        Without a slot that it shall have, it gets a free one.
        """
        fields = {f"dllm_{key}": value for key, value in (dllm or {}).items()}
        asked = {"temperature": 0, "max_tokens": 8, "extra_args": fields, **asked}
        params = SamplingParams(**asked)
        max_tokens = min(params.max_tokens, MAX_LEN - len(prompt))
        decoding = decoding_of(params, self.config, max_tokens)
        plan = plan_of(decoding, self.config, len(prompt), max_tokens)
        slot = self.free_slots()[0] if slot is None else slot
        end = len(prompt) + max_tokens
        request = Running(name, prompt, params, slot, plan, end, known=len(prompt))
        self._place(request)
        return request

    def step(self, logits: Logits, *names: str) -> Step:
        """Take a step for some requests, or for all."""
        requests = [self.running[name] for name in names or self.running]
        planned = [r.plan.clip(r.span(), self.budget) for r in requests]
        input_batch = batch_of(requests, planned)
        known = torch.tensor([request.known for request in requests])
        layout, blocks = self.slots.layout, self.slots.canvas.tokens.values
        spans = layout.arrange(layout.lay_out(input_batch, known), blocks)
        token_ids = layout.token_ids(spans, blocks, self.all_token_ids)
        batch, rows = self.sampler.gather(spans)
        if any(span.canvas for span in planned):
            values = logits(batch, len(rows))
            output = self.sampler.denoise(values, batch, input_batch, None)
        else:
            output = self.sampler.commit_only(spans)
        for index, (request, span) in enumerate(zip(requests, planned, strict=True)):
            ends = batch.found_end
            found = None if ends is None else int(ends[index]) or None
            self._go_on(index, request, span, output, found)
        return Step(planned, input_batch, spans, batch, token_ids, rows, output)

    def preempt(self, name: str) -> None:
        """Take its slot and its keys from a request, and let it go on in another slot,
        after a third one has used both."""
        request = self.running.pop(name)
        self.slots.suspend(name, request.slot)
        self.slots.release(request.slot)
        fields = {} if self.config.facts.attention == "window" else CREDIT
        for other in ("x", "y"):
            self.add(other, [5, 6, 7], fields, logprobs=3)
        for _ in range(3):
            self.step(TableLogits(99), "x", "y")
        for other in ("x", "y"):
            self.slots.release(self.running.pop(other).slot)
        free = self.free_slots()
        request.slot = next(s for s in [*free[1:], *free] if s != request.slot)
        request.computed = 0
        self._place(request)

    def free_slots(self) -> list[int]:
        taken = {request.slot for request in self.running.values()}
        return [s for s in range(len(self.all_token_ids)) if s not in taken]

    def _place(self, request: Running) -> None:
        self.running[request.name] = request
        prompt_len = len(request.prompt)
        self.slots.add_request(
            request.name, request.slot, request.params, prompt_len, MAX_LEN
        )
        tokens = torch.tensor([*request.prompt, *request.answer])
        self.all_token_ids[request.slot, : len(tokens)] = tokens

    def _go_on(
        self,
        index: int,
        request: Running,
        span: Span,
        output: SamplerOutput,
        found_end: int | None,
    ) -> None:
        count = int(output.num_sampled[index])
        tokens = output.sampled_token_ids[index, :count].tolist()
        after = slice(request.known, request.known + count)
        self.all_token_ids[request.slot, after] = torch.tensor(tokens).int()
        request.answer += tokens
        request.known += count
        request.mark = found_end or request.plan.mark(span, request.mark)
        if isinstance(request.plan, AfterPrompt):
            request.mark = int(self.slots.buffers.opened[request.slot])
        start = request.computed + span.length - int(output.num_rejected[index])
        request.computed = request.plan.next_start(span, request.known)
        assert start == request.computed
        if request.known == request.end:
            self.slots.release(request.slot)
            del self.running[request.name]

    def run(self, logits: Logits, limit: int = 500) -> list[Step]:
        """Take steps until all requests are done."""
        steps = []
        while self.running:
            steps.append(self.step(logits))
            assert len(steps) < limit
        return steps


def batch_of(requests: list[Running], planned: list[Span]) -> Any:
    """The parts of vLLM's `InputBatch` that are read."""
    lengths = np.array([span.length for span in planned], dtype=np.int32)
    starts = [request.computed for request in requests]
    slot_np = np.array([request.slot for request in requests])
    query_start = np.cumsum([0, *lengths], dtype=np.int32)
    seq_lens = torch.tensor(starts).int() + torch.from_numpy(lengths)
    return SimpleNamespace(
        dllm_known={
            request.name
            for request, span in zip(requests, planned, strict=True)
            if span.is_known
        },
        req_ids=[request.name for request in requests],
        num_reqs=len(requests),
        num_tokens=int(lengths.sum()),
        idx_mapping=torch.from_numpy(slot_np),
        idx_mapping_np=slot_np,
        num_scheduled_tokens=lengths,
        num_draft_tokens_per_req=np.array([span.canvas for span in planned]),
        num_computed_tokens_np=np.array(starts),
        seq_lens=seq_lens,
        seq_lens_cpu_upper_bound=seq_lens,
        query_start_loc=torch.from_numpy(query_start),
        query_start_loc_np=query_start,
        positions=torch.cat(
            [torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
        ),
    )


class TableLogits:
    """Those of a position and a step of its block, in whatever batch."""

    def __init__(self, seed: int, sharpness: float = 3.0) -> None:
        """The sharper, the surer."""
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(997, VOCAB, generator=generator) * sharpness

    def __call__(self, batch: CanvasBatch, rows: int) -> torch.Tensor:
        request, column = batch.cell
        place = 7 * batch.position[request, column] + 131 * batch.step[request]
        # Rows of second branches follow; what they say matters little here.
        place = torch.nn.functional.pad(place, (0, rows - len(place)), value=5)
        return self.table[place % len(self.table)]
