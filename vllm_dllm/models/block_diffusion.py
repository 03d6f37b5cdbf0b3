"""What makes a vLLM model class a block-diffusion model: the state it asks for."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from vllm_dllm.models.completeness import Completeness

if TYPE_CHECKING:
    from vllm_dllm.worker.model_state import DenoisingModelState

NAMED = 5
"""Missing tensors that a message names."""


class BlockDiffusion:
    """Mixin. The layers stay vLLM's; attention rows come from the model state."""

    missing_tensors: list[str] = []
    """What the last loading of weights left out. Nothing is wrong with that where
    weights come in parts."""

    @staticmethod
    def get_model_state_cls() -> "type[DenoisingModelState]":
        from vllm_dllm.worker.model_state import DenoisingModelState

        return DenoisingModelState

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        completeness = Completeness(cast(nn.Module, self))
        weights = completeness.watch(weights)
        try:
            loaded: set[str] = super().load_weights(weights)  # type: ignore[misc]
        except (AssertionError, LookupError, RuntimeError, ValueError) as error:
            if completeness.last is None:
                raise
            name, shape = completeness.last
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"the checkpoint's {self.released_name(name)} of shape {shape} has no "
                f"place in the model of its config.json: {reason}"
            ) from error
        self.missing_tensors = [
            name for name in completeness.missing() if not self.may_lack(name)
        ]
        # vLLM would name some of them; `refuse_incomplete` names the first of all.
        return loaded | completeness.parameters

    def refuse_incomplete(self) -> None:
        """Raise ValueError if the checkpoint lacked something, naming what."""
        if self.missing_tensors:
            missing = [self.released_name(name) for name in self.missing_tensors]
            more = len(missing) - NAMED
            raise ValueError(
                f"the checkpoint lacks {', '.join(missing[:NAMED])}"
                f"{f' and {more} more tensors' if more > 0 else ''}, which the model "
                "needs"
            )

    def may_lack(self, name: str) -> bool:
        """Whether a checkpoint of this config may do without the tensor."""
        return False

    @staticmethod
    def released_name(name: str) -> str:
        """What released checkpoints call the tensor that vLLM calls `name`."""
        return name
