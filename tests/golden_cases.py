"""Golden cases: requests, and the tokens that the authors' own code answered.

Checkpoints and cases lie in tests/golden; the references of tests/reference answer
requests that have no golden case.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tests.reference import (
    adablock_generate,
    d3llm_generate,
    dream_generate,
    fast_dllm_v2_generate,
    joint_threshold_indel,
    llada2_generate,
    llada_generate,
    nemotron_generate,
    sdar_generate,
    wedlm_generate,
)
from tests.reference.diffullama import DiffuLlama, generate_samples
from tests.reference.dream import Dream
from tests.reference.fast_dllm_v2 import FastDLLMv2
from tests.reference.kv_cache import Cache
from tests.reference.llada import LLaDA
from tests.reference.llada2_moe import LLaDA2Moe
from tests.reference.nemotron import Nemotron
from tests.reference.sdar import SDAR
from tests.reference.wedlm import WeDLM

GOLDEN = Path(__file__).parent / "golden"
MASK, EOS = 255, 1

RULES = {"llada2": "threshold", "quota": "low_confidence"}
"""Names in the case files that are not one of ours, nor an alias."""
RENAMED = {"small_block_length": "sub_block_length"}
"""Fields of the case files that have another name here."""
OTHER_RULES = {"hf"}
"""Of LLaDA2.2's two schedules the one that is not SGLang's, and not ours."""
DREAM_MEASURES = {"threshold": "maskgit_plus"}
"""Rules of ours that differ from one of Dream's by more than their measure."""


@dataclass(frozen=True)
class Case:
    """One greedy request; with golden cases, its answer too."""

    checkpoint: str
    prompt: list[int]
    gen_length: int
    block_length: int | None
    """None: the whole answer is one block."""
    algorithm: str
    steps: int | None = None
    """Of a block; with full attention of the whole answer."""
    threshold: float | None = None
    edit_threshold: float | None = None
    max_post_steps: int | None = None
    sub_block_length: int | None = None
    causal_context: bool = True
    factor: float | None = None
    eps: float | None = None
    window: int | None = None
    entropy_threshold: float | None = None
    add_block_threshold: float | None = None
    pos_penalty_factor: float | None = None
    cache: str | None = None
    cfg_scale: float = 0.0
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    suffix: Sequence[int] = ()
    """What follows the answer."""
    canvas: Sequence[int] = ()
    """What the prompt is followed by instead, -1 at each position of its gaps."""
    reveals: list[list[int]] | None = None
    """What was drawn by lot: positions of the answer that each step decides."""
    delimiter_ids: Sequence[int] = ()
    delimiter_threshold: float | None = None
    blocks: Sequence[int] = ()
    """Lengths of the blocks that the authors' code chose."""
    tokens: list[int] | None = None
    nfe: int | None = None
    """Forwards that the authors' code used."""
    stopped: bool | None = None
    """Whether it ended with an end token, where the case says so."""

    @property
    def ignore_eos(self) -> bool:
        """Whether the authors' code goes on after an end token."""
        return not self.checkpoint.startswith(
            ("llada2", "fastdllm2", "nemotron", "wedlm")
        )

    @property
    def full_attention(self) -> bool:
        return self.checkpoint.startswith(
            ("llada-", "dream-", "diffullama-", "adablock-")
        )

    @property
    def is_deterministic(self) -> bool:
        """Whether every server must answer so; else those with the same lots."""
        return self.reveals is None or len(self.reveals) == 1

    @property
    def is_computed(self) -> bool:
        """Whether we do what was asked for: Fast-dLLM v2's block cache we lack, and
        Nemotron's prompts that see themselves whole."""
        return self.cache != "block" and self.causal_context

    @property
    def fields(self) -> dict[str, Any]:
        """The request's `dllm_*` fields."""
        fields = {
            "dllm_algorithm": RULES.get(self.algorithm, self.algorithm),
            "dllm_steps": self.steps,
            "dllm_threshold": self.threshold,
            "dllm_edit_threshold": self.edit_threshold,
            "dllm_max_post_steps": self.max_post_steps,
            "dllm_sub_block_length": self.sub_block_length,
            "dllm_factor": self.factor,
            "dllm_eps": self.eps,
            "dllm_delimiter_ids": list(self.delimiter_ids) or None,
            "dllm_delimiter_threshold": self.delimiter_threshold,
            "dllm_entropy_threshold": self.entropy_threshold,
            "dllm_add_block_threshold": self.add_block_threshold,
        }
        if self.algorithm == "wedlm":
            fields |= {
                "dllm_window": self.window,
                "dllm_entropy_threshold": self.entropy_threshold or 0.0,
                "dllm_pos_penalty_factor": self.pos_penalty_factor,
            }
        if self.checkpoint.startswith("nemotron"):
            fields["dllm_block_length"] = self.block_length
        if self.full_attention:
            fields |= {
                "dllm_block_length": self.block_length,
                "dllm_cache": self.cache,
                "dllm_cfg_scale": self.cfg_scale or None,
                "dllm_logits_eos_inf": self.logits_eos_inf or None,
                "dllm_confidence_eos_eot_inf": self.confidence_eos_eot_inf or None,
                "dllm_suffix_token_ids": list(self.suffix) or None,
                "dllm_canvas_token_ids": list(self.canvas) or None,
            }
        return {key: value for key, value in fields.items() if value is not None}

    def answered(self, model: "Model | None" = None) -> Self:
        """The same case with the answer of the reference, or of another `model`."""
        model = model or reference_model(self.checkpoint)
        tokens, nfe = self._reference_answer(model)
        return replace(self, tokens=tokens, nfe=nfe)

    def _reference_answer(self, model: "Model") -> tuple[list[int], int]:
        """Tokens and forwards; one with guidance counts once, as in the engine."""
        request = (self.prompt, self.gen_length)
        if isinstance(model, FastDLLMv2):
            assert self.sub_block_length is not None and self.threshold is not None
            return fast_dllm_v2_generate.generate(
                model, *request, self.sub_block_length, self.threshold, MASK, EOS
            )
        if isinstance(model, WeDLM):
            return wedlm_generate.generate(
                model,
                *request,
                MASK,
                window=self.window,
                entropy_threshold=self.entropy_threshold,
                pos_penalty_factor=self.pos_penalty_factor,
                stop_id=EOS,
            )
        if isinstance(model, Nemotron):
            assert self.block_length is not None
            return nemotron_generate.generate(
                model,
                *request,
                1 if self.algorithm == "linear_spec" else self.block_length,
                self.threshold,
                MASK,
                EOS,
                self.steps,
            )
        if isinstance(model, SDAR):
            return sdar_generate.generate(
                model,
                *request,
                self.block_length,
                self.steps,
                self.algorithm,
                MASK,
                1.0 if self.threshold is None else self.threshold,
            )
        if self.algorithm == "joint_threshold_indel":
            return joint_threshold_indel.generate(
                model,
                *request,
                self.block_length,
                mask_id=MASK,
                eos_id=EOS,
                threshold=self.threshold,
                edit_threshold=self.edit_threshold,
                max_post_steps=self.max_post_steps,
            )
        if isinstance(model, LLaDA2Moe):
            return llada2_generate.generate(
                llada2_generate.Still(model),
                *request,
                self.block_length,
                self.steps,
                self.threshold,
                MASK,
                EOS,
            )
        if self.algorithm == "adablock":
            assert self.block_length is not None and self.threshold is not None
            answer = adablock_generate.generate(
                model,
                *request,
                self.block_length,
                mask_id=MASK,
                threshold=self.threshold,
                cache=self.cache or "none",
                delimiter_ids=self.delimiter_ids,
                delimiter_threshold=self.delimiter_threshold,
                suffix=self.suffix,
            )
            return answer.tokens, answer.forwards
        if self.algorithm == "d3llm":
            assert self.block_length is not None
            assert self.entropy_threshold is not None
            assert self.add_block_threshold is not None
            return d3llm_generate.generate(
                model,
                *request,
                self.block_length,
                mask_id=MASK,
                entropy_threshold=self.entropy_threshold,
                add_block_threshold=self.add_block_threshold,
                suffix=self.suffix,
            )
        if isinstance(model, LLaDA):
            tokens, nfe = llada_generate.generate(
                model,
                *request,
                self.block_length or self.gen_length,
                mask_id=MASK,
                steps=self.steps,
                threshold=self.threshold,
                factor=self.factor,
                entropy_threshold=self.entropy_threshold,
                cache=self.cache or "none",
                cfg_scale=self.cfg_scale,
                eos_id=EOS,
                eot_id=EOS,  # the checkpoint has no end of a turn
                logits_eos_inf=self.logits_eos_inf,
                confidence_eos_eot_inf=self.confidence_eos_eot_inf,
                suffix=self.suffix,
                given=self.canvas,
            )
            return tokens, nfe // (2 if self.cfg_scale else 1)
        if self.reveals is not None:
            return generate_samples(model, self.prompt, self.reveals, MASK)
        common: dict[str, Any] = {
            "mask_id": MASK,
            "steps": self.steps,
            "eps": self.eps or 1e-3,
        }
        common |= {"suffix": self.suffix, "given": self.canvas}
        if self.cfg_scale:
            model = Guided(model, self)
        if self.cache in (None, "none"):
            assert self.block_length is None and self.steps is not None
            return dream_generate.generate(
                model, *request, algorithm=self.algorithm, **common
            )
        return dream_generate.generate_blockwise(
            model,
            *request,
            self.block_length or self.gen_length,
            cache=self.cache,
            algorithm=DREAM_MEASURES.get(self.algorithm, self.algorithm),
            threshold=self.threshold,
            **common,
        )

    def __str__(self) -> str:
        shown = {**asdict(self), "prompt": len(self.prompt), "tokens": None}
        return str({name: value for name, value in shown.items() if value})


class Guided:
    """A reference model with classifier-free guidance, which Dream's authors lack."""

    def __init__(self, model: Dream, case: Case) -> None:
        self.model, self.config, self.case = model, model.config, case
        self.blind_cache: Cache | None = None

    def __call__(self, ids: Tensor, start: int = 0, cache: Any = None) -> Tensor:
        """As `Dream.forward`; a second forward has masks for what is given."""
        if cache is not None and self.blind_cache is None:
            self.blind_cache = Cache(len(cache.keys), cache.length)
        case = self.case
        behind = case.canvas or [*[-1] * case.gen_length, *case.suffix]
        known = torch.tensor([True] * len(case.prompt) + [t >= 0 for t in behind])
        # Masks of the last block may lie behind the answer.
        known = torch.nn.functional.pad(known, (0, len(ids)))[start:]
        blind = ids.masked_fill(known[: len(ids)], MASK)
        prior = self.model(blind, start, self.blind_cache)
        away = self.model(ids, start, cache) - prior
        return prior + (self.case.cfg_scale + 1) * away


Model = SDAR | FastDLLMv2 | Nemotron | LLaDA2Moe | LLaDA | Dream | WeDLM
MODELS: dict[str, type[Model]] = {
    "sdar": SDAR,
    "fastdllm2": FastDLLMv2,
    "nemotron": Nemotron,
    "llada2": LLaDA2Moe,
    "llada-": LLaDA,
    "dream": Dream,
    "diffullama": DiffuLlama,
    "adablock-llada": LLaDA,
    "adablock-dream": Dream,
    "wedlm": WeDLM,
}


@cache
def reference_model(checkpoint: str) -> Model:
    return model_class(checkpoint).from_pretrained(GOLDEN / checkpoint)


def model_class(checkpoint: str) -> type[Model]:
    """The reference's class for this golden checkpoint."""
    [model] = [m for name, m in MODELS.items() if checkpoint.startswith(name)]
    return model


def golden_cases(checkpoint: str, block_length: int | None = None) -> list[Case]:
    """Those with that block length; None for all. Without those drawn by lot, and what
    we do not do."""
    return [
        case
        for case in recorded_cases(checkpoint)
        if case.is_deterministic
        and case.is_computed
        and block_length in (None, case.block_length)
    ]


def recorded_cases(checkpoint: str) -> list[Case]:
    """All that the authors' code answered."""
    lines = (GOLDEN / checkpoint / "cases.jsonl").read_text().splitlines()
    recorded = [json.loads(line) for line in lines]
    recorded = [line for line in recorded if line.get("rule") not in OTHER_RULES]
    return [case_of(checkpoint, line) for line in recorded]


def case_of(checkpoint: str, line: dict[str, Any]) -> Case:
    """A line of a case file; what the authors' code counts besides is left out."""
    known = {field.name for field in fields(Case)}
    values = {RENAMED.get(name, name): value for name, value in line.items()}
    values = {name: value for name, value in values.items() if name in known}
    if line.get("adablock"):
        values["algorithm"] = "adablock"
    return Case(**{"checkpoint": checkpoint, "block_length": None, **values})


def differences(cases: list[Case], answers: list[list[int]]) -> list[str]:
    """One line for every answer that is not the case's."""
    return [
        f"{case}: got {answer}, expected {case.tokens}"
        for case, answer in zip(cases, answers, strict=True)
        if answer != case.tokens
    ]


def too_many_forwards(cases: list[Case], forwards: list[int]) -> list[str]:
    """One line for every answer that took more forwards than the authors' code."""
    return [
        f"{case}: {count} forwards"
        for case, count in zip(cases, forwards, strict=True)
        if count > case.nfe
    ]
