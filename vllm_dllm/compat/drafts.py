"""A patch that spares the workers a call after each step."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_dllm.compat.patch import wraps

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore


@wraps("vllm.v1.engine.core:EngineCore.post_step")
def fetch_no_drafts(function: Callable[..., None]) -> Callable[..., None]:
    """Fetch no draft tokens of our models: the canvas stays on the workers.

    vLLM fetches them of every diffusion model, and waits for a worker to answer.
    Removable when vLLM asks its scheduler whether it wants any.
    """
    from vllm_dllm.models.registry import is_ours

    def post_step(self: "EngineCore", model_executed: bool) -> None:
        if not is_ours(self.vllm_config.model_config):
            function(self, model_executed)

    return post_step
