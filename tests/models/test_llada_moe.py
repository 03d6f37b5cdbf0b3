"""LLaDA-MoE against its reference; no golden checkpoint has this architecture."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoints import derived
from tests.engines import OneAtATime, tokens_of
from tests.golden_cases import EOS, MASK
from tests.reference import adablock_generate
from tests.reference.llada_generate import CACHES, generate
from tests.reference.llada_moe import LLaDAMoE, LLaDAMoEConfig
from tests.specs import EngineSpec
from vllm_dllm.models.llada_moe import RELEASED_NAMES, biased_routing

CONFIG = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "expert_intermediate_size": 64,
    "dense_intermediate_size": 192,
    "moe_layer_freq": [1, 1, 1],
}
REST = {
    "model_type": "llada",
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "qk_layernorm": True,
    "norm_topk_prob": True,  # the authors' code does not read it
    "partial_rotary_factor": 0.5,  # nor this
    "mask_token_id": MASK,
    "eos_token_id": EOS,
}
"""Fields that every variant's config.json has besides `CONFIG`."""
VARIANTS = {
    "LLaDAMoEModelLM": {"shared_expert_intermediate_size": None},
    # What the code has and no released checkpoint uses.
    "LLaDAMoEModel": {
        "moe_layer_freq": [0, 1, 1],
        "shared_expert_intermediate_size": 96,
        "moe_router_enable_expert_bias": True,
    },
}
"""Architecture -> its changes to `CONFIG`."""
BLOCK = 8
GEN_LENGTH = 18  # ends inside a block
ADABLOCK: dict[str, Any] = {
    "threshold": 0.1,
    "delimiter_ids": [*range(2, 160)],
    "delimiter_threshold": 0.03,
}
PROMPT_LENGTHS = (1, 7, 8, 33, 70)


def random_weights(config: LLaDAMoEConfig) -> dict[str, Tensor]:
    """Weights of a model that is sure of some tokens and of others not."""
    generator = torch.Generator().manual_seed(20)
    weights = {}
    for name, weight in LLaDAMoE(config).state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("expert_bias"):
            weights[name] = 0.2 * noise
        elif weight.dim() == 1:
            weights[name] = 1 + 0.1 * noise
        elif "embed_tokens" in name:
            weights[name] = noise
        else:
            weights[name] = noise * 1.5 / weight.shape[1] ** 0.5
    weights["lm_head.weight"][MASK] *= 1e-3  # never the best candidate
    return weights


def checkpoint(folder: Path, architecture: str) -> Path:
    """Write a random checkpoint of that architecture and its variant's config."""
    fields = {**CONFIG, **VARIANTS[architecture]}
    weights = random_weights(LLaDAMoEConfig(**fields))
    if architecture == "LLaDAMoEModel":
        weights = {name.removeprefix("model."): w for name, w in weights.items()}
    # The golden checkpoint's own fields are dense LLaDA's: of them only the tokens'
    # ids may stay.
    dense = ("d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size")
    dense += ("embedding_size", "max_sequence_length", "weight_tying")
    changes = dict.fromkeys(dense) | REST | fields
    return derived(
        folder, "llada-pub0", weights, architectures=[architecture], **changes
    )


def reference(architecture: str) -> LLaDAMoE:
    config = LLaDAMoEConfig(**{**CONFIG, **VARIANTS[architecture]})
    model = LLaDAMoE(config)
    model.load_state_dict(random_weights(config))
    return model.eval()


def requests() -> list[tuple[list[int], dict[str, Any]]]:
    """Prompts, and the reference's arguments: every cache, more and fewer steps."""
    random = Random(3)
    return [
        (
            [random.randrange(2, MASK) for _ in range(length)],
            {"cache": cache, "steps": (24, 12, 6)[(number + offset) % 3]},
        )
        for number, length in enumerate(PROMPT_LENGTHS)
        for offset, cache in enumerate(CACHES)
    ]


def test_bare_and_shared_weights_have_their_place() -> None:
    """A weight under a name that nobody asks for is left at its random start."""
    names = {
        "model.layers.0.mlp.experts.3.up_proj.weight": (
            "model.layers.0.mlp.experts.3.up_proj.weight"
        ),
        "layers.0.mlp.gate.weight": "model.layers.0.mlp.gate.weight",
        "norm.weight": "model.norm.weight",
        "embed_tokens.weight": "model.embed_tokens.weight",
        "lm_head.weight": "lm_head.weight",
        "model.layers.12.shared_expert.up_proj.weight": (
            "model.layers.12.mlp.shared_expert.up_proj.weight"
        ),
    }
    assert {name: RELEASED_NAMES.map_name(name) for name in names} == names


def test_a_router_s_bias_counts_in_the_choice_and_in_the_weights() -> None:
    """Elsewhere, as in LLaDA2, such a bias only chooses."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, 0.9])
    weights, experts = biased_routing(bias, logits, logits, topk=2, renormalize=False)
    assert experts.tolist()[0] == [2, 0]
    scores = logits.softmax(-1) + bias
    assert torch.equal(weights, scores.gather(1, experts))


def test_variants_and_caches_differ() -> None:
    """If all answered the same, the engine's test below could not tell them apart."""
    prompt, _ = requests()[-1]
    answers = {
        str(generate(reference(name), prompt, GEN_LENGTH, BLOCK, mask_id=MASK, cache=c))
        for name in VARIANTS
        for c in CACHES
    }
    assert len(answers) == len(VARIANTS) * len(CACHES)


@pytest.mark.engine
@pytest.mark.parametrize("architecture", VARIANTS)
def test_a_mixed_batch_answers_as_the_reference(
    running: OneAtATime, tmp_path: Path, architecture: str
) -> None:
    """Experts, their weights' sum or the norm of heads could differ from Qwen3's."""
    from vllm import SamplingParams

    model = reference(architecture)
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests()]
    fields = [
        {"algorithm": "low_confidence", "block_length": BLOCK, **arguments}
        for _, arguments in requests()
    ]
    expected = [
        generate(model, prompt, GEN_LENGTH, BLOCK, mask_id=MASK, **arguments)[0]
        for prompt, arguments in requests()
    ]

    for prompt, arguments in requests()[::4]:
        own = {**ADABLOCK, "cache": arguments["cache"]}
        found = adablock_generate.generate(
            model, prompt, GEN_LENGTH, BLOCK, mask_id=MASK, **own
        )
        assert found.blocks != [BLOCK, BLOCK, GEN_LENGTH % BLOCK]
        fields.append({"algorithm": "adablock", "block_length": BLOCK, **own})
        prompts.append({"prompt_token_ids": prompt})
        expected.append(found.tokens)
    params = [
        SamplingParams(
            temperature=0,
            max_tokens=GEN_LENGTH,
            ignore_eos=True,
            extra_args={f"dllm_{name}": value for name, value in own.items()},
        )
        for own in fields
    ]

    folder = checkpoint(tmp_path / "model", architecture)
    engine = running.engine(EngineSpec(str(folder), BLOCK))
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    assert [tokens_of(output) for output in outputs] == expected
