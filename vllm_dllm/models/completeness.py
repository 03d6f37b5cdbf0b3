"""Which tensors a model needs from its checkpoint, and which of them did not come.

vLLM takes the tensors that a checkpoint has and never misses one: a model without its
head would start, and answer the same token for ever.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.fused_moe import (
    RoutedExperts,
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
)

STACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Layers of vLLM that are several layers of a checkpoint."""
PLAIN_METHODS = (
    type(None),
    UnquantizedLinearMethod,
    UnquantizedEmbeddingMethod,
    UnquantizedFusedMoEMethod,
)
"""What computes a layer whose parameters are the checkpoint's own."""


class Layer(NamedTuple):
    """A layer as checkpoints have it."""

    name: str
    """Without that of a parameter: `model.layers.0.self_attn.q_proj`."""
    stand_ins: tuple[str, ...]
    """Names under which a checkpoint may hold it together with others."""
    parameters: tuple[str, ...]
    quantized: bool
    """Whether `parameters` are not what a checkpoint has to have."""


def layers_of(model: nn.Module) -> list[Layer]:
    """Every layer that a checkpoint of the model has to have, in the model's order."""
    layers = []
    # Without those that are tied to one before.
    own = {id(parameter) for parameter in model.parameters()}
    for name, module in model.named_modules():
        parameters = tuple(
            key
            for key, parameter in module.named_parameters(recurse=False)
            if id(parameter) in own
        )
        own -= {id(parameter) for parameter in module.parameters(recurse=False)}
        # Attention may have scales of its keys, which checkpoints may lack.
        if not parameters or isinstance(module, Attention):
            continue
        method = getattr(module, "quant_method", None)
        quantized = not isinstance(method, PLAIN_METHODS)
        if isinstance(module, RoutedExperts):
            experts = name.rpartition(".")[0]
            if not quantized:
                parameters = ("weight",)  # whose stack is one parameter here
            layers += [
                Layer(part, stand_ins, parameters, quantized)
                for part, stand_ins in projections(experts, module)
            ]
            continue
        head, dot, last = name.rpartition(".")
        parts = STACKED.get(last, (last,))
        stand_ins = (name,) if len(parts) > 1 else ()
        layers += [
            Layer(head + dot + part, stand_ins, parameters, quantized) for part in parts
        ]
    return layers


def projections(
    name: str, experts: RoutedExperts
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The projections of this rank's experts, and their stand-ins."""
    own = list(range(experts.moe_config.num_logical_experts))
    if experts.expert_map is not None:  # others may not even be read
        own = [expert for expert in own if experts.expert_map[expert] >= 0]
    for expert in own:
        both = (f"{name}.gate_up_proj", f"{name}.{expert}.gate_up_proj")
        yield f"{name}.{expert}.gate_proj", both
        yield f"{name}.{expert}.up_proj", both
        yield f"{name}.{expert}.down_proj", (f"{name}.down_proj",)


class Completeness:
    """What one loading of a model's weights leaves out."""

    def __init__(self, model: nn.Module) -> None:
        # Before they are loaded: kernels replace parameters by others afterwards.
        self.layers = layers_of(model)
        self.parameters = {name for name, _ in model.named_parameters()}
        self.seen: set[str] = set()
        self.last: tuple[str, list[int]] | None = None
        """Name and shape of the tensor that is being loaded."""

    def watch(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The same weights, whose names are noted."""
        for name, weight in weights:
            self.seen.add(name)
            self.last = name, list(weight.shape)
            yield name, weight

    def missing(self) -> list[str]:
        """Names of the tensors that did not come.

        What a quantized layer consists of is known from its like in other layers.
        """
        found: dict[str, set[str]] = defaultdict(set)
        for name in self.seen:
            place, _, parameter = name.rpartition(".")
            found[place].add(parameter)
        usual: dict[tuple[str, tuple[str, ...], bool], set[str]] = defaultdict(set)
        for layer in self.layers:
            usual[kind_of(layer)] |= found.get(layer.name, set())
        names = []
        for layer in self.layers:
            if any(name in found or name in self.seen for name in layer.stand_ins):
                continue
            needed = layer.parameters
            if layer.quantized:
                needed = tuple(sorted(usual[kind_of(layer)])) or ("weight",)
            there = found.get(layer.name, set())
            names += [f"{layer.name}.{key}" for key in needed if key not in there]
        return names


def kind_of(layer: Layer) -> tuple[str, tuple[str, ...], bool]:
    """What is the same for such layers of all blocks and experts."""
    return re.sub(r"\d+", "*", layer.name), layer.parameters, layer.quantized
