"""A patch that gives attention backends room for our rows."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import wraps
from vllm_dllm.models.registry import is_ours

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@wraps("vllm.v1.worker.gpu.model_runner:init_attn_backend")
def size_attention_for_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make room for our rows of attention in the buffers of its backends.

    A span may be many rows (worker/spans/). FlashAttention and FlashInfer size
    their buffers for `max_num_seqs` requests, so a long prefill would not fit. Called
    by workers. Removable when a model state can say how many rows it makes.
    """
    from vllm_dllm.config import DllmConfig
    from vllm_dllm.worker.spans.registry import layout_class

    def init_attn_backend(
        kv_cache_config: Any, vllm_config: "VllmConfig", *args: Any, **kwargs: Any
    ) -> Any:
        if is_ours(vllm_config.model_config):
            config = DllmConfig.of(vllm_config.model_config)
            scheduler = copy.copy(vllm_config.scheduler_config)
            scheduler.max_num_seqs = layout_class(config.facts).max_rows(
                config, scheduler.max_num_seqs, scheduler.max_num_batched_tokens
            )
            vllm_config = copy.copy(vllm_config)
            vllm_config.scheduler_config = scheduler
        return function(kv_cache_config, vllm_config, *args, **kwargs)

    return init_attn_backend
