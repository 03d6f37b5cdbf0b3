"""A patch that ends the answers under way when a server is told to stop."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import wraps

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


@wraps(
    "vllm.v1.engine.async_llm:AsyncLLM.shutdown",
    uses=(
        "vllm.v1.engine.exceptions:EngineDeadError",
        "vllm.v1.engine.output_processor:OutputProcessor.propagate_error",
        "vllm.utils.async_utils:run_in_loop",
    ),
)
def end_answers(function: Callable[..., None]) -> Callable[..., None]:
    """Tell every reader whose answer is not complete that it ends here.

    vLLM has its engine send what an aborted request ends with, or the rest of an answer
    within `--shutdown-timeout`, and stops listening for it: whose end is not read in
    time waits for ever, and so does the server for its readers.
    Removable when vLLM ends its answers itself.
    """
    from vllm.utils.async_utils import run_in_loop
    from vllm.v1.engine.exceptions import EngineDeadError

    from vllm_dllm.models.registry import is_ours

    class ServerStopped(EngineDeadError):
        def __str__(self) -> str:
            return "the server was stopped before the answer was complete"

    def shutdown(self: "AsyncLLM", *args: Any, **kwargs: Any) -> None:
        # Refuses new requests from here on.
        function(self, *args, **kwargs)
        handler = getattr(self, "output_handler", None)
        if handler is not None and is_ours(self.model_config):
            tell = self.output_processor.propagate_error
            run_in_loop(handler.get_loop(), tell, ServerStopped())

    return shutdown
