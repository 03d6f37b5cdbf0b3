"""`--quantization dllm_int8`: which layers of a model become eight-bit."""

from typing import Any

import torch
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)

NAME = "dllm_int8"


@register_quantization_config(NAME)
class Int8Config(QuantizationConfig):
    """Linear layers and the head in int8, from any checkpoint that is not quantized.

    Embeddings, norms, routers and experts stay as they are.
    """

    ties_head = False
    """Whether the head is the embedding."""

    def get_name(self) -> str:
        return NAME

    @classmethod
    def get_min_capability(cls) -> int:
        return 75

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Int8Config":
        return cls()

    def maybe_update_config(self, model_name: str, **known: Any) -> None:
        """vLLM tells what it knows of the checkpoint."""
        self.ties_head = getattr(known.get("hf_config"), "tie_word_embeddings", False)

    def get_quant_method(
        self, layer: torch.nn.Module, prefix: str
    ) -> QuantizeMethodBase | None:
        from vllm.model_executor.layers.fused_moe import GateLinear
        from vllm.model_executor.layers.linear import (
            LinearBase,
            UnquantizedLinearMethod,
        )
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        from vllm_dllm.quantization.linear import (
            Int8LinearMethod,
            Int8TiedHeadMethod,
        )

        match layer:
            case GateLinear():
                return UnquantizedLinearMethod()
            case ParallelLMHead() if self.ties_head:
                return Int8TiedHeadMethod()
            case LinearBase() | ParallelLMHead():
                return Int8LinearMethod()
        return None
