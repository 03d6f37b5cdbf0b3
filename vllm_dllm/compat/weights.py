"""Patches for weights that change while an engine runs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import wraps

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore

_EXPERTS = "vllm.model_executor.layers.fused_moe"
NEW_WEIGHTS = ("reload_weights", "update_weights", "finish_weight_update")
"""Methods of workers after which the weights are others."""


@wraps(
    f"{_EXPERTS}.unquantized_fused_moe_method:UnquantizedFusedMoEMethod._setup_kernel",
    uses=(
        f"{_EXPERTS}.experts.cpu_moe:"
        "CPUUnquantizedExperts.process_weights_after_loading",
    ),
)
def pack_new_experts(function: Callable[..., None]) -> Callable[..., None]:
    """Pack experts for their kernel on CPU whenever they were loaded.

    vLLM packs those that it loads first, and computes with later ones as if they had
    been packed.
    Removable when vLLM packs reloaded experts on CPU.
    """
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import (
        CPUUnquantizedExperts,
    )

    def _setup_kernel(self: Any, layer: Any, *args: Any, **kwargs: Any) -> None:
        is_reload = self.moe_kernel is not None
        function(self, layer, *args, **kwargs)
        experts = self.moe_kernel.fused_experts
        if is_reload and isinstance(experts, CPUUnquantizedExperts):
            experts.process_weights_after_loading(layer)

    return _setup_kernel


@wraps(
    "vllm.model_executor.model_loader.reload.layerwise:finalize_layerwise_processing",
    uses=(
        "vllm.model_executor.layers.vocab_parallel_embedding:"
        "UnquantizedEmbeddingMethod.process_weights_after_loading",
    ),
)
def pack_tied_heads(function: Callable[..., None]) -> Callable[..., None]:
    """Pack a tied head for its kernel on CPU when its embeddings were loaded again.

    vLLM packs layers whose tensors were loaded, and a tied head has none of its own.
    Removable when vLLM packs such heads.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    def finalize_layerwise_processing(model: Any, *args: Any, **kwargs: Any) -> None:
        function(model, *args, **kwargs)
        layers = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
        heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
        for head in heads:
            if any(x.weight is head.weight for x in layers if x is not head):
                head.quant_method.process_weights_after_loading(head)

    return finalize_layerwise_processing


@wraps(
    "vllm.v1.engine.core:EngineCore.collective_rpc",
    uses=(
        "vllm.v1.engine.core:EngineCore.is_scheduler_paused",
        "vllm.v1.engine.core:EngineCore.reset_prefix_cache",
    ),
)
def change_weights(function: Callable[..., Any]) -> Callable[..., Any]:
    """Forget the keys of old weights with them, those of running requests too.

    Where the engine is paused, whoever paused it has said whether caches are cleared.
    vLLM keeps pages of old weights until it is told otherwise, and shares them.
    Removable when vLLM clears its prefix cache with new weights.
    """
    from vllm_dllm.models.registry import is_ours

    def collective_rpc(
        self: "EngineCore", method: str | Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        result = function(self, method, *args, **kwargs)
        ours = is_ours(self.vllm_config.model_config)
        if ours and method in NEW_WEIGHTS and not self.is_scheduler_paused():
            self.reset_prefix_cache(reset_running_requests=True)
        return result

    return collective_rpc
