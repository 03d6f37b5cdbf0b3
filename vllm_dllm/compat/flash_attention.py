"""A patch that leaves our models the FlashAttention that others have."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import wraps
from vllm_dllm.models.registry import is_ours

if TYPE_CHECKING:
    from vllm.config import ModelConfig


@contextmanager
def not_called_diffusion(model_config: "ModelConfig") -> Iterator[None]:
    """`is_diffusion`, which vLLM keeps once it was read, is False inside."""
    kept = model_config.is_diffusion
    vars(model_config)["is_diffusion"] = False
    try:
        yield
    finally:
        vars(model_config)["is_diffusion"] = kept


@wraps("vllm.v1.attention.backends.flash_attn:get_flash_attn_version")
def keep_flash_attention_3(function: Callable[..., Any]) -> Callable[..., Any]:
    """On Hopper, take the version that comes compiled with vLLM.

    There vLLM takes version 4 for diffusion models, whose own one needs a mask of
    another kind for each request. Rows of ours have one kind in a step. Version 4 is
    compiled when it is first used. Called by workers on GPUs. Removable when vLLM asks
    the model which masks it needs.
    """

    def get_flash_attn_version(*args: Any, **kwargs: Any) -> Any:
        from vllm.config import get_current_vllm_config_or_none

        config = get_current_vllm_config_or_none()
        if config is None or not is_ours(config.model_config):
            return function(*args, **kwargs)
        with not_called_diffusion(config.model_config):
            return function(*args, **kwargs)

    return get_flash_attn_version
