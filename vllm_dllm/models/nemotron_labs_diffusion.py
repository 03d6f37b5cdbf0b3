"""Nemotron-Labs-Diffusion: Ministral's layers, under an encoder's names."""

from collections.abc import Iterable

import torch
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.utils import WeightsMapper

from vllm_dllm.models.block_diffusion import BlockDiffusion

RELEASED_NAMES = WeightsMapper(
    orig_to_new_prefix={"encoder.": "model.", "diffusion_head.": "lm_head."}
)


class NemotronLabsDiffusionModel(BlockDiffusion, MistralForCausalLM):
    """`NemotronLabsDiffusionModel` checkpoints."""

    # Read for the names in quantization configs and adapters.
    hf_to_vllm_mapper = RELEASED_NAMES | MistralForCausalLM.hf_to_vllm_mapper

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return super().load_weights(RELEASED_NAMES.apply(weights))

    @staticmethod
    def released_name(name: str) -> str:
        for released, ours in RELEASED_NAMES.orig_to_new_prefix.items():
            if name.startswith(ours):
                return released + name.removeprefix(ours)
        return name
