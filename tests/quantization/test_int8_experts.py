"""Experts in int8 against the same sums in float32, row by row."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import silu

from vllm_dllm.quantization.experts import Int8ExpertsMethod

EXPERTS, HIDDEN, INNER, CHOSEN = 6, 64, 48, 2


def layer_of(w13: torch.Tensor, w2: torch.Tensor, **known: object) -> torch.nn.Module:
    layer = torch.nn.Module()
    for name, weight in (("w13_weight", w13), ("w2_weight", w2)):
        layer.register_parameter(name, torch.nn.Parameter(weight, False))
    vars(layer).update({"expert_map": None, **known})
    return layer


def answer(rows: int, share: torch.Tensor, ids: torch.Tensor) -> SimpleNamespace:
    draw = torch.Generator().manual_seed(rows)
    return SimpleNamespace(
        w13=torch.randn(EXPERTS, 2 * INNER, HIDDEN, generator=draw) / 8,
        w2=torch.randn(EXPERTS, HIDDEN, INNER, generator=draw) / 8,
        x=torch.randn(rows, HIDDEN, generator=draw),
        share=share,
        ids=ids,
    )


def plain(made: SimpleNamespace, own: list[int]) -> torch.Tensor:
    """The sum over the chosen experts of `own`."""
    total = torch.zeros_like(made.x)
    for row, x in enumerate(made.x):
        for expert, share in zip(made.ids[row].tolist(), made.share[row], strict=True):
            if expert in own:
                gate, up = (made.w13[expert] @ x).chunk(2)
                total[row] += share * (made.w2[expert] @ (silu(gate) * up))
    return total


@pytest.mark.parametrize("own", [[*range(EXPERTS)], [1, 4]], ids=["all", "some"])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_experts_add_up_to_what_those_of_float32_do(rows: int, own: list[int]) -> None:
    """A row with the weights of another's expert, or with its share, is far off; and
    experts of another rank are for that one to add."""
    draw = torch.Generator().manual_seed(rows)
    ids = torch.rand(rows, EXPERTS, generator=draw).argsort(1)[:, :CHOSEN]
    made = answer(rows, torch.rand(rows, CHOSEN, generator=draw), ids)
    known = {}
    if len(own) < EXPERTS:
        places = torch.full((EXPERTS,), -1)
        places[own] = torch.arange(len(own))
        known["expert_map"] = places
    layer = layer_of(made.w13[own].clone(), made.w2[own].clone(), **known)
    method = Int8ExpertsMethod(None)
    method.process_weights_after_loading(layer)
    assert layer.w13_weight.dtype == torch.int8
    found = method.apply(layer, made.x.bfloat16(), made.share, made.ids.int())
    exact = plain(made, own)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() <= 0.03 * exact.norm()
