"""What the tools have to know of one model: its shape, rows, masks and decoder."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tools.tiny.rows import Flags, Places, Row, Stage, random_masks


def layer_of(name: str) -> str | None:
    """The number of the layer that a weight belongs to, if it is in one."""
    found = re.search(r"\.(\d+)\.", name)
    return found and found[1]


class Recipe(ABC):
    """How one of the tiny checkpoints is built, trained and decoded."""

    model_class: ClassVar[Any]
    config_class: ClassVar[Any]
    """The model in tests/reference, and what its config.json is read into."""
    config: ClassVar[dict[str, Any]]
    stages: tuple[Stage, ...]
    # Ends of the names of the layers' weights that write into the residual stream.
    residual_writers: tuple[str, ...]
    init_std: float = 0.05
    decay_from: float = 0.6
    """Share of the steps after which the learning rate falls."""
    autocast: bool = False
    """Whether the forward pass runs in bfloat16."""

    def build(self) -> nn.Module:
        """The model of `config`, its weights not yet set."""
        return self.model_class(self.config_class.from_dict(self.config))

    def load(self, folder: Path) -> nn.Module:
        """The model of a checkpoint, in float32."""
        return self.model_class.from_pretrained(folder)

    def initialise(self, model: nn.Module) -> None:
        """Normal weights, smaller where a layer writes into the residual stream."""
        named = dict(model.named_parameters())
        layers = {layer_of(name) for name in named} - {None}
        depth = (2 * len(layers)) ** -0.5
        for name, param in named.items():
            if param.dim() > 1:
                writes = layer_of(name) and name.endswith(self.residual_writers)
                scale = depth if writes else 1.0
                torch.nn.init.normal_(param, std=self.init_std * scale)

    @abstractmethod
    def row(self, rng: Random, prompt: list[int], answer: list[int]) -> Row:
        """One training row of an example."""

    def masks(
        self, maskable: Flags, end: Places, noise: np.random.Generator, stage: Stage
    ) -> Flags:
        """Which positions of a batch to mask; shapes as in `random_masks`."""
        return random_masks(maskable, end, noise, stage.suffix_share)

    @abstractmethod
    def logits(self, model: nn.Module, ids: Tensor) -> Tensor:
        """ids: [rows, length] -> [rows, length, vocab], under the model's own mask."""

    @abstractmethod
    def after_step(self, model: nn.Module, factor: float) -> None:
        """What follows an optimiser step; `factor` scales the learning rate."""

    @abstractmethod
    def decode(self, model: nn.Module, prompt: list[int]) -> tuple[list[int], int]:
        """Greedy tokens up to and including the first EOS, and the forwards."""
