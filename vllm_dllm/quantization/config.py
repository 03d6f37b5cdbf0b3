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
    """Linear layers, experts and the head in int8, from unquantized checkpoints.

    Embeddings, norms and routers stay as they are.
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
        from vllm.model_executor.layers.fused_moe import GateLinear, RoutedExperts
        from vllm.model_executor.layers.linear import (
            LinearBase,
            UnquantizedLinearMethod,
        )
        from vllm.model_executor.layers.vocab_parallel_embedding import (
            ParallelLMHead,
            VocabParallelEmbedding,
        )

        from vllm_dllm.quantization.linear import (
            EmbeddingMethod,
            Int8LinearMethod,
            Int8TiedHeadMethod,
        )

        match layer:
            case RoutedExperts():
                return of_experts(layer.moe_config)
            case GateLinear():
                return UnquantizedLinearMethod()
            case ParallelLMHead() if self.ties_head:
                return Int8TiedHeadMethod()
            case LinearBase() | ParallelLMHead():
                return Int8LinearMethod()
            case VocabParallelEmbedding():
                return EmbeddingMethod()
        return None


def of_experts(moe: Any) -> QuantizeMethodBase:
    """vLLM's on a GPU, ours on a CPU; what ours does not know stays as it is."""
    from vllm.model_executor.layers.fused_moe import UnquantizedFusedMoEMethod
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.quantization.online.int8 import Int8OnlineMoEMethod
    from vllm.platforms import current_platform

    from vllm_dllm.quantization.experts import Int8ExpertsMethod

    if not current_platform.is_cpu():
        return Int8OnlineMoEMethod(moe=moe)
    if moe.activation == MoEActivation.SILU and not moe.has_bias:
        return Int8ExpertsMethod(moe)
    return UnquantizedFusedMoEMethod(moe)
