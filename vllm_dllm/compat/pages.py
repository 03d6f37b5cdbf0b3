"""A patch that keeps pages from being shared before their KV is final."""

from collections.abc import Callable
from typing import Any

from vllm_dllm.compat.patch import wraps


@wraps("vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.cache_blocks")
def share_final_pages(function: Callable[..., None]) -> Callable[..., None]:
    """Share no page with KV that the request writes again.

    vLLM shares the pages of all known tokens that a step forwards. A step on a seeded
    block of a causal model writes some that are not final yet: our scheduler says of
    its requests how far they are. Removable when vLLM asks the scheduler for that.
    """

    def cache_blocks(self: Any, request: Any, num_computed_tokens: int) -> None:
        final: int = getattr(request, "dllm_final", num_computed_tokens)
        function(self, request, min(num_computed_tokens, final))

    return cache_blocks
