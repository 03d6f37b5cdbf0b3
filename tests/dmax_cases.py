"""Cases of DMax: requests with soft tokens, and their answers."""

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any, Self

import torch

from tests.golden_cases import GOLDEN, MASK, LLaDA2Moe, Model, reference_model
from tests.reference import dmax_generate
from tests.reference.masks import block_causal
from tests.reference.sdar import SDAR

ROUNDING = 1e-6
"""What float32 makes of an embedding on its way through the layers, relative to it."""


@dataclass(frozen=True)
class SoftCase:
    """One greedy request, and its answer."""

    checkpoint: str
    block: int
    prompt: list[int]
    gen_length: int
    threshold: float
    tokens: list[int]
    nfe: int
    """Steps of all blocks."""

    ignore_eos = True

    @property
    def fields(self) -> dict[str, Any]:
        """The request's `dllm_*` fields."""
        return {"dllm_algorithm": "dmax", "dllm_threshold": self.threshold}

    def answered(self, model: Model | None = None, noise: int | None = None) -> Self:
        """The same with the answer of the reference, or of another `model`; with the
        seed of a `noise`, of one that rounds otherwise."""
        generator = torch.Generator().manual_seed(noise or 0)
        model = model or reference_model(self.checkpoint)
        assert isinstance(model, LLaDA2Moe | SDAR)

        def read(hidden: torch.Tensor) -> torch.Tensor:
            if noise is not None:
                off = torch.randn(hidden.shape, generator=generator)
                hidden = hidden * (1 + ROUNDING * off)
            mask = block_causal(len(hidden), self.block)
            if isinstance(model, LLaDA2Moe):
                return model.read(hidden.unsqueeze(0), mask)[0]
            return model.read(hidden, mask)

        tokens, nfe = dmax_generate.generate(
            dmax_generate.Model(model.embed, read, MASK),
            self.prompt,
            self.gen_length,
            self.block,
            self.threshold,
        )
        return replace(self, tokens=tokens, nfe=nfe)

    def answered_in_float64(self) -> Self:
        """The same with the answer of the reference that rounds next to nothing."""
        return self.answered(deepcopy(reference_model(self.checkpoint)).double())

    def hangs_on_rounding(self, draws: int = 3) -> bool:
        """Whether the reference answers otherwise once it rounds otherwise.

        A step feeds its confidences to the next, and these checkpoints turn a
        difference of 1e-6 into one of 1e-2 within a few steps.
        """
        return any(self.answered(noise=seed) != self for seed in range(draws))


HANGING = {(8, 0.5), (16, 0.0)}
"""Block and threshold of golden cases of llada20-dmax-pub0 that hang on rounding: 12
steps and 13 of the authors, and 13 and 20 of engines here.

The reference in float64 answers both as the authors' code did. Given the same inputs,
an engine's probabilities are in each of these steps within 5e-5 of float64's, and those
of the reference in float32 within 4e-5. But a step is fed with those of the one before:
in the second case 9e-6 after the first step of the reference in float32 are 1.4e-2
after the sixth, and in the seventh another token is the best one (17 steps).
"""


@cache
def golden_soft_cases(checkpoint: str, block: int) -> list[SoftCase]:
    """The authors' own answers; all that there are."""
    lines = (GOLDEN / "llada20-dmax-pub0" / "cases.jsonl").read_text().splitlines()
    return [
        SoftCase(
            checkpoint,
            block,
            case["prompt"],
            case["gen_length"],
            case["accept"],
            case["tokens"],
            case["nfe_active"],
        )
        for case in map(json.loads, lines)
        if case["reference"] == "dmax"
        and (case["checkpoint"], case["block_length"]) == (checkpoint, block)
    ]


def soft_cases(checkpoint: str, block: int) -> list[SoftCase]:
    """The golden ones whose answers can be told from rounding."""
    return [
        case
        for case in golden_soft_cases(checkpoint, block)
        if checkpoint != "llada20-dmax-pub0" or (block, case.threshold) not in HANGING
    ]


@cache
def random_soft_cases(
    checkpoint: str, block: int, count: int, model: Model | None = None
) -> list[SoftCase]:
    """Requests of any parameters, answered by the reference, or by another `model`;
    without those that hang on rounding."""
    settled = []
    for seed in range(count):
        draw = Random(f"dmax {checkpoint} {block} {seed}")
        prompt = [draw.randrange(2, MASK) for _ in range(draw.randint(1, 3 * block))]
        threshold = draw.choice((0.0, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0))
        length = draw.randint(1, min(2 * block, 40) + 3)
        case = SoftCase(checkpoint, block, prompt, length, threshold, [], 0)
        case = case.answered(model)
        if model is not None or not case.hangs_on_rounding(draws=1):
            settled.append(case)
    assert len(settled) > 0.7 * count, "rounding decides too much"
    return settled
