"""DiffuLLaMA, which must be asked for: the authors' coins, and what is not its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.checkpoints import derived
from tests.engine_config import engine_config
from tests.engines import Engine, tokens_of, uses
from tests.golden_cases import (
    GOLDEN,
    MASK,
    Case,
    differences,
    golden_cases,
    recorded_cases,
    reference_model,
)
from tests.reference.dream_generate import new_canvas, shifted
from tests.specs import DIFFULLAMA
from vllm_dllm.config import DllmConfig
from vllm_dllm.decoding.base import CanvasStep
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.decoding.time_grid import time_grid
from vllm_dllm.models.registry import is_ours

NAME = "diffullama-pub0"
RANDOM = [case for case in recorded_cases(NAME) if case.reveals is not None]


# The authors' coins


def lots(case: Case, step: int) -> torch.Tensor:
    """[1, length] float32: numbers that are just below the probability of the step
    where its position is revealed, and just not below it elsewhere."""
    assert case.steps is not None and case.reveals is not None
    chance = torch.tensor(1 / (case.steps - step))
    below = torch.nextafter(chance, torch.tensor(0.0))
    numbers = torch.full((1, case.gen_length), float(chance))
    numbers[0, case.reveals[step]] = below
    return numbers


def step_of(
    case: Case, step: int, masked: torch.Tensor, logits: torch.Tensor
) -> CanvasStep:
    """What the rule is given; masked: [1, length] bool, logits: [length, vocab]."""
    none = torch.zeros(1, dtype=torch.int64)
    return CanvasStep(
        tokens=torch.zeros_like(masked, dtype=torch.int64),
        masked=masked,
        editable=~masked,
        length=none + case.gen_length,
        step=none + step,
        post_steps=none,
        candidate=logits.argmax(-1).unsqueeze(0),
        confidence=torch.full(masked.shape, torch.nan),
        entropy=None,
        margin=None,
        noise=lots(case, step),
        time=time_grid(case.steps, 0)[step : step + 1],
        params={"steps": none + case.steps},
    )


@pytest.mark.parametrize("number", range(len(RANDOM)))
@torch.no_grad()
def test_the_recorded_coins_give_the_recorded_tokens(number: int) -> None:
    """Another probability, or `<=` in place of `<`, reveals other positions."""
    case, rule = RANDOM[number], get_rule("random_order")
    start = len(case.prompt)
    canvas, masked = new_canvas(case.prompt, MASK, case.gen_length, ())
    for step in range(case.steps):
        logits = shifted(reference_model(NAME)(canvas))[start:]
        logits[:, MASK] = -torch.inf
        canvas_step = step_of(case, step, masked[start:].unsqueeze(0), logits)
        write = rule.decide(canvas_step).write[0]
        assert write.nonzero().flatten().tolist() == case.reveals[step]
        canvas[start:][write] = canvas_step.candidate[0][write]
        masked[start:][write] = False
    assert canvas[start:].tolist() == case.tokens


# The engine's own coins


@uses("diffullama")
def test_drawn_orders_answer_as_the_reference(engine: Engine) -> None:
    """A position whose token is taken a step too late or too early sees others."""
    cases = []
    for case in RANDOM[::2]:
        fields = {**case.fields, "dllm_return_trajectory": True}
        [output] = engine.ask([case], extra_args=fields, seed=7)
        steps = output.kv_transfer_params["dllm_trajectory"]
        reveals = [
            [position for position, at in enumerate(steps) if at == step]
            for step in range(max(steps) + 1)
        ]
        drawn = replace(case, reveals=reveals).answered()
        assert differences([drawn], [tokens_of(output)]) == []
        assert engine.forwards(output) <= case.steps
        cases.append(drawn)
    assert any(len(reveals) > 1 and [] in reveals for reveals in map(of, cases))
    together = engine.ask([replace(c, reveals=None) for c in cases], seed=7)
    assert differences(cases, [tokens_of(output) for output in together]) == []


@uses("diffullama")
@pytest.mark.parametrize("every", [2, 3])
def test_golden_tokens_when_all_are_preempted_again_and_again(
    engine: Engine, every: int
) -> None:
    """Rows are those of the positions after them: one too few begins a block anew."""
    cases = golden_cases(NAME)
    outputs = engine.ask_preempting([(case, {}) for case in cases], every)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []


def of(case: Case) -> list[list[int]]:
    assert case.reveals is not None
    return case.reveals


@uses("diffullama")
def test_every_share_of_the_canvas_is_as_likely(engine: Engine) -> None:
    """Of 4 steps each decides a quarter; a quota would decide just that."""
    case = replace(RANDOM[0], gen_length=48, steps=4)
    fields = {**case.fields, "dllm_return_trajectory": True}
    outputs = engine.ask_each(
        [(case, {"extra_args": fields, "seed": seed}) for seed in range(40)]
    )
    counts = torch.zeros(40, 4)
    for number, output in enumerate(outputs):
        for step in output.kv_transfer_params["dllm_trajectory"]:
            counts[number, step] += 1
    # 1,920 positions: four standard deviations of a mean are 0.04 of a quarter.
    shares = counts.sum(0) / counts.sum()
    assert ((shares - 0.25).abs() < 0.04).all(), shares
    assert counts[:, 0].unique().numel() > 5


# Its name


def test_a_llama_is_left_to_vllm(tmp_path: Path) -> None:
    """Everybody's Llamas are called so; a choice must be the user's."""
    config = engine_config(GOLDEN / NAME).model_config
    assert type(config.hf_config) is LlamaConfig
    assert not is_ours(config)
    folder = derived(tmp_path / "model", NAME, mask_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["mask_token"] == "<|mask|>"
    for options, mask in (
        (DIFFULLAMA, MASK),
        ({**DIFFULLAMA, "additional_config": {"dllm": {"mask_token_id": 9}}}, 9),
    ):
        config = engine_config(folder, **options).model_config
        assert is_ours(config)
        assert DllmConfig.of(config).mask_token_id == mask
        assert DllmConfig.of(config).algorithm == "random_order"
