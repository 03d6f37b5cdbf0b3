"""LLaDA2-MoE: the layouts its checkpoints are found in, and its normalised head."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from tests.checkpoints import derived
from tests.engines import OneAtATime
from tests.golden_cases import EOS, GOLDEN, MASK, Case, differences, golden_cases
from tests.reference.llada2_generate import generate
from tests.reference.llada2_moe import LLaDA2Moe
from tests.specs import EngineSpec
from vllm_dllm.models.llada2_moe import EXPERT_PROJECTIONS, canonical_layout

BASE = "llada20-pub0"
NUM_EXPERTS = 16
BLOCK = 8


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    return load_file(GOLDEN / BASE / "model.safetensors")


def fused(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """dFactory's layout: one tensor for all experts of a projection."""
    merged = {}
    for name, weight in weights.items():
        head, is_expert, rest = name.partition(".mlp.experts.")
        if not is_expert:
            merged[name] = weight
            continue
        projection = rest.split(".")[1]
        parts = [
            weights[f"{head}.mlp.experts.{expert}.{projection}.weight"]
            for expert in range(NUM_EXPERTS)
        ]
        merged[f"{head}.mlp.experts.{projection}"] = torch.stack(parts)
    return merged


def prefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The multimodal export's names."""
    return {
        f"model.{name}"
        if name.startswith("lm_head.")
        else name.replace("model.", "model.language_model.", 1): weight
        for name, weight in weights.items()
    }


def called_weight(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What writers make of it that append `.weight` to every parameter."""
    return {
        f"{name}.weight" if name.endswith(EXPERT_PROJECTIONS) else name: weight
        for name, weight in weights.items()
    }


LAYOUTS = {
    "released": lambda weights: weights,
    "fused": fused,
    "fused and called weight": lambda weights: called_weight(fused(weights)),
    "prefixed": prefixed,
    "fused and prefixed": lambda weights: prefixed(fused(weights)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_as_the_released_one(
    released: dict[str, Tensor], layout: str
) -> None:
    """A weight under a name that nobody asks for is left at its random start."""
    weights = LAYOUTS[layout](released)
    read = list(canonical_layout(weights.items()))
    names = [name for name, _ in read]
    assert len(names) == len(set(names))
    assert set(names) == released.keys()
    for name, weight in read:
        assert torch.equal(weight, released[name]), name


def test_shared_experts_are_not_taken_for_fused_ones() -> None:
    """They would be cut into rows."""
    name = "model.layers.1.mlp.shared_experts.gate_proj.weight"
    weight = torch.ones(3, 2)
    assert list(canonical_layout([(name, weight)])) == [(name, weight)]


def test_weights_are_brought_over_one_by_one() -> None:
    """A list of all weights would hold a second copy of a 100B model in memory."""
    stream = iter(
        [("model.norm.weight", torch.ones(1)), ("lm_head.weight", torch.ones(1))]
    )
    first, _ = next(iter(canonical_layout(stream)))
    assert first == "model.norm.weight"
    assert next(stream)[0] == "lm_head.weight"


def answers_of_engine(
    folder: Path, cases: list[Case], running: OneAtATime
) -> list[list[int]]:
    return running.engine(EngineSpec(str(folder), BLOCK)).answers(cases)


@pytest.mark.engine
def test_a_fused_and_prefixed_checkpoint_answers_as_the_released_one(
    released: dict[str, Tensor], running: OneAtATime, tmp_path: Path
) -> None:
    """Names may be right and the loader behind them still put experts elsewhere."""
    folder = derived(tmp_path / "model", BASE, prefixed(fused(released)))
    cases = golden_cases(BASE, BLOCK)
    assert differences(cases, answers_of_engine(folder, cases, running)) == []


def answers_of_reference(model: LLaDA2Moe, cases: list[Case]) -> list[list[int]]:
    return [
        generate(
            model,
            case.prompt,
            case.gen_length,
            case.block_length,
            case.steps,
            case.threshold or 0.0,
            MASK,
            EOS,
        )[0]
        for case in cases
    ]


@pytest.mark.engine
def test_a_head_that_is_to_be_normalised_is(
    released: dict[str, Tensor], running: OneAtATime, tmp_path: Path
) -> None:
    """`norm_head` checkpoints hold the head as it was trained; used so, other tokens
    win, and with other confidence."""
    # Columns of very different length, so that their norms matter.
    stretch = torch.linspace(0.25, 4, released["lm_head.weight"].shape[1])
    trained = {**released, "lm_head.weight": released["lm_head.weight"] * stretch}
    folder = derived(tmp_path / "model", BASE, trained, norm_head=True)
    # The head's logits are small: no token is as likely as in the golden cases.
    cases = [
        replace(case, threshold=0.02 if number % 2 else 0.05)
        for number, case in enumerate(golden_cases(BASE, BLOCK))
    ]

    model = LLaDA2Moe.from_pretrained(folder)
    as_trained = answers_of_reference(model, cases)
    head = model.lm_head.weight
    head.data = functional.normalize(head.data, dim=0, eps=1e-7)
    expected = answers_of_reference(model, cases)
    assert all(a != b for a, b in zip(expected, as_trained, strict=True))

    assert answers_of_engine(folder, cases, running) == expected
