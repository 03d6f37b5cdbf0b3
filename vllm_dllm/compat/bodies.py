"""A patch that looks at a body before vLLM does."""

from collections.abc import Awaitable, Callable
from typing import Any

from vllm_dllm.compat.patch import wraps
from vllm_dllm.models.registry import is_ours


@wraps("vllm.entrypoints.serve.utils.api_utils:validate_json_request")
def check_bodies(
    function: Callable[..., Awaitable[None]],
) -> Callable[..., Awaitable[None]]:
    """Refuse bodies of our models that vLLM fails on, naming the field.

    vLLM reads some fields before it knows what they are: a word for an object ends in a
    500 without a message. Every route that takes JSON asks this first. Removable when
    vLLM compares the kinds of all fields before it reads one.
    """
    from vllm_dllm.serving.body import check_body

    async def validate_json_request(raw_request: Any) -> None:
        await function(raw_request)
        config = getattr(raw_request.app.state, "vllm_config", None)
        if config is not None and is_ours(config.model_config):
            # Both are kept by the request, which was read already.
            check_body(await raw_request.body(), await raw_request.json())

    return validate_json_request
