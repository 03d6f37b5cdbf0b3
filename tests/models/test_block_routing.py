"""Routing by blocks (LLaDA2.2), against loops over blocks and tokens."""

from dataclasses import replace

import pytest
import torch

from tests.engine_config import resolved
from tests.engines import OneAtATime
from tests.golden_cases import GOLDEN, golden_cases
from tests.reference.llada2_moe import Gate, LLaDA2Moe
from tests.specs import EngineSpec
from vllm_dllm.models.block_routing import chosen_alone

BASE = "llada22-pub1"
EXPERTS, CAPACITY, TOP_K, BLOCK = 16, 6, 4, 8


def gate(seed: int) -> Gate:
    """The reference's, with a bias that is larger than any score."""
    gate: Gate = LLaDA2Moe.from_pretrained(GOLDEN / BASE).model.layers[1].mlp.gate
    generator = torch.Generator().manual_seed(seed)
    gate.expert_bias = torch.randn(EXPERTS, generator=generator) * 3
    return gate


def routed(hidden: torch.Tensor, gate: Gate) -> torch.Tensor:
    logits = hidden @ gate.weight.T
    return chosen_alone(logits, gate.expert_bias, BLOCK, CAPACITY, TOP_K)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [BLOCK, 5 * BLOCK, 1, 3, 2 * BLOCK + 3])
def test_the_router_finds_the_choice_of_the_reference(tokens: int) -> None:
    """Experts of another block, or of the bias alone. Padded batches end anywhere."""
    for seed in range(20):
        model = gate(seed)
        hidden = torch.randn(tokens, 128, generator=torch.Generator().manual_seed(seed))
        weights, chosen = model(hidden)
        # What vLLM's router makes of it.
        scores = routed(hidden, model).sigmoid()
        found, experts = scores.topk(TOP_K, dim=1)
        found = found / found.sum(dim=1, keepdim=True) * 2.5
        order, same = chosen.sort(dim=1), experts.sort(dim=1)
        assert torch.equal(order.values, same.values)
        torch.testing.assert_close(
            found.gather(1, same.indices), weights.gather(1, order.indices)
        )


@torch.no_grad()
def test_a_compiled_model_is_not_told_of_the_length_of_a_batch() -> None:
    """vLLM compiles once, for a whole number of blocks, and drops all guards."""
    torch._dynamo.reset()
    model = gate(0)
    traced: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        traced.append(graph)
        return graph.forward

    compiled = torch.compile(routed, backend=backend, dynamic=True, fullgraph=True)
    for tokens in (4 * BLOCK, 2 * BLOCK, 9, 33):
        hidden = torch.randn(tokens, 128)
        torch._dynamo.mark_dynamic(hidden, 0)
        torch.testing.assert_close(compiled(hidden, model), routed(hidden, model))
    assert len(traced) == 1


@pytest.mark.parametrize("block", [4, 12])
def test_blocks_that_tear_those_of_the_checkpoint_are_refused(block: int) -> None:
    """Tokens would share experts with half of a block, and be others."""
    with pytest.raises(ValueError, match=rf"block_size={block}: .*allowed: 8 and"):
        resolved(BASE, block_size=block)


@pytest.mark.engine
def test_a_block_may_be_several_of_the_checkpoints(running: OneAtATime) -> None:
    """Experts are shared in blocks of the checkpoint, whatever is decoded at once."""
    engine = running.engine(EngineSpec(BASE, 2 * BLOCK))
    cases = golden_cases(BASE)[:6]
    model = LLaDA2Moe.from_pretrained(GOLDEN / BASE)
    assert model.config.block_size == BLOCK
    expected = [replace(case, block_length=2 * BLOCK).answered(model) for case in cases]
    assert engine.answers(cases) == [case.tokens for case in expected]
