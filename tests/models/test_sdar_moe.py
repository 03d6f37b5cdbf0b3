"""SDAR-MoE against its reference; no golden checkpoint has this architecture."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from tests.checkpoints import derived
from tests.engines import OneAtATime
from tests.golden_cases import EOS, MASK, Case, differences
from tests.reference.sdar_generate import ALGORITHMS, generate
from tests.reference.sdar_moe import SDARMoe, SDARMoeConfig
from tests.specs import EngineSpec

CONFIG = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "block_size": 4,
    "mask_token_id": MASK,
    "eos_token_id": EOS,
}
BLOCK = CONFIG["block_size"]
PROMPT_LENGTHS = (1, 2, 3, 4, 5, 8, 15, 16, 31, 33, 64, 69, 70)
GEN_LENGTH = 18  # ends inside a block for most of the prompts


def random_weights(config: SDARMoeConfig) -> dict[str, Tensor]:
    """Weights of a model that is sure of some tokens and of others not."""
    generator = torch.Generator().manual_seed(20)
    weights = {}
    for name, weight in SDARMoe(config).state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            weights[name] = 1 + 0.1 * noise
        elif "embed_tokens" in name:
            weights[name] = noise
        else:
            weights[name] = noise * 1.5 / weight.shape[1] ** 0.5
    weights["lm_head.weight"][MASK] *= 1e-3  # never the best candidate
    return weights


def checkpoint(folder: Path) -> Path:
    """Write a random checkpoint."""
    return derived(
        folder,
        "sdar-pub0",
        random_weights(SDARMoeConfig(**CONFIG)),
        architectures=["SDARMoeForCausalLM"],
        model_type="sdar_moe",
        norm_topk_prob=True,
        decoder_sparse_step=1,
        **CONFIG,
    )


def requests() -> list[Case]:
    """Every rule with every prompt length, in more and in fewer steps."""
    random = Random(3)
    return [
        Case(
            checkpoint="sdar-moe",
            prompt=[random.randrange(2, MASK) for _ in range(length)],
            gen_length=GEN_LENGTH,
            block_length=BLOCK,
            algorithm=algorithm,
            steps=(BLOCK, 3, 2)[(number + offset) % 3],
            threshold=0.5 if algorithm == "low_confidence_dynamic" else None,
        )
        for number, length in enumerate(PROMPT_LENGTHS)
        for offset, algorithm in enumerate(ALGORITHMS)
    ]


@pytest.mark.engine
def test_a_mixed_batch_answers_as_the_reference(
    running: OneAtATime, tmp_path: Path
) -> None:
    """Experts, their weights' norm or the mask could differ from Qwen3-MoE's."""
    folder = checkpoint(tmp_path / "model")
    model = SDARMoe.from_pretrained(folder)
    cases = [with_answer(case, model) for case in requests()]
    answers = {str(case.tokens) for case in cases}
    assert len(answers) > len(PROMPT_LENGTHS), (
        "the rules all answer the same: the model is too sure to tell them apart"
    )

    engine = running.engine(EngineSpec(str(folder), BLOCK))
    assert differences(cases, engine.answers(cases)) == []


def with_answer(case: Case, model: SDARMoe) -> Case:
    common = (case.prompt, case.gen_length, case.block_length, case.steps)
    tokens, nfe = generate(model, *common, case.algorithm, MASK, case.threshold or 1.0)
    return replace(case, tokens=tokens, nfe=nfe)
