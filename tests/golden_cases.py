"""Golden cases: requests, and the tokens that the authors' own code answered.

Checkpoints and cases lie in tests/golden; the references of tests/reference answer
requests that have no golden case.
"""

import json
import random
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from tests.reference import llada2_generate, sdar_generate
from tests.reference.llada2_moe import LLaDA2Moe
from tests.reference.sdar import SDAR

GOLDEN = Path(__file__).parent / "golden"
MASK, EOS = 255, 1

RULES = {"llada2": "threshold"}
"""Names in the case files that are not one of ours, nor an alias."""


@dataclass(frozen=True)
class Case:
    """One greedy request; with golden cases, its answer too."""

    checkpoint: str
    prompt: list[int]
    gen_length: int
    block_length: int
    algorithm: str
    steps: int | None = None
    threshold: float | None = None
    edit_threshold: float | None = None
    max_post_steps: int | None = None
    tokens: list[int] | None = None
    nfe: int | None = None
    """Forwards that the authors' code used."""

    @property
    def ignore_eos(self) -> bool:
        """Whether the authors' code goes on after an end token."""
        return self.checkpoint.startswith("sdar")

    @property
    def fields(self) -> dict[str, Any]:
        """The request's `dllm_*` fields."""
        fields = {
            "dllm_algorithm": RULES.get(self.algorithm, self.algorithm),
            "dllm_steps": self.steps,
            "dllm_threshold": self.threshold,
            "dllm_edit_threshold": self.edit_threshold,
            "dllm_max_post_steps": self.max_post_steps,
        }
        return {key: value for key, value in fields.items() if value is not None}

    def answered(self) -> Self:
        """The same case with the answer of the reference."""
        common = (self.prompt, self.gen_length, self.block_length, self.steps)
        model = reference_model(self.checkpoint)
        if isinstance(model, SDAR):
            tokens, nfe = sdar_generate.generate(
                model,
                *common,
                self.algorithm,
                MASK,
                1.0 if self.threshold is None else self.threshold,
            )
        else:
            tokens, nfe = llada2_generate.generate(
                model, *common, self.threshold, MASK, EOS
            )
        return replace(self, tokens=tokens, nfe=nfe)

    def __str__(self) -> str:
        shown = {**asdict(self), "prompt": len(self.prompt)}
        return str({k: shown[k] for k in shown.keys() - {"tokens", "checkpoint"}})


@cache
def reference_model(checkpoint: str) -> SDAR | LLaDA2Moe:
    model = SDAR if checkpoint.startswith("sdar") else LLaDA2Moe
    return model.from_pretrained(GOLDEN / checkpoint)


def golden_cases(checkpoint: str, block_length: int) -> list[Case]:
    lines = (GOLDEN / checkpoint / "cases.jsonl").read_text().splitlines()
    cases = [Case(checkpoint, **json.loads(line)) for line in lines]
    return [case for case in cases if case.block_length == block_length]


def new_cases(
    checkpoint: str, block_length: int, prompt_lengths: list[int], gen_length: int
) -> list[Case]:
    """Requests with random prompts, of every rule that the family has, unanswered."""
    rng = random.Random(f"{checkpoint} {prompt_lengths}")
    # Rule, threshold, and the share of the block that a step decodes at least.
    rules = [("low_confidence_dynamic", 0.3, 1), ("low_confidence_static", None, 2)]
    rules.append(("sequential", None, 2))
    if not checkpoint.startswith("sdar"):
        rules = [("llada2", 0.95, 1), ("llada2", 0.3, 2)]
    return [
        Case(
            checkpoint,
            [rng.randrange(2, MASK) for _ in range(length)],
            gen_length,
            block_length,
            algorithm,
            block_length // tokens_per_step,
            threshold,
        )
        for length in prompt_lengths
        for algorithm, threshold, tokens_per_step in rules
    ]


def differences(cases: list[Case], answers: list[list[int]]) -> list[str]:
    """One line for every answer that is not the case's."""
    return [
        f"{case}: got {answer}, expected {case.tokens}"
        for case, answer in zip(cases, answers, strict=True)
        if answer != case.tokens
    ]
