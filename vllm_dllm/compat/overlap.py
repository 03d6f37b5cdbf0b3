"""A patch that leaves `--async-scheduling` to who starts an engine on a CPU."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_dllm.compat.patch import wraps
from vllm_dllm.models.registry import is_ours

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@wraps("vllm.platforms.cpu:CpuPlatform.check_and_update_config")
def keep_async_scheduling(
    function: Callable[[type, "VllmConfig"], None],
) -> Callable[[type, "VllmConfig"], None]:
    """Plan steps ahead on a CPU where that was asked for.

    vLLM switches it off there without a word. Off is our default too, but the engine
    plans and reads steps while its worker, another process, forwards. Removable when
    vLLM leaves the choice to the user.
    """

    def check_and_update_config(cls: type, vllm_config: "VllmConfig") -> None:
        asked = vllm_config.scheduler_config.async_scheduling
        function(cls, vllm_config)
        if is_ours(vllm_config.model_config):
            vllm_config.scheduler_config.async_scheduling = asked

    return check_and_update_config
