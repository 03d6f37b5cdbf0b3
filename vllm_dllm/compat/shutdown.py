"""Patches that end the answers under way, and a server, when it is time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import wraps

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor


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


@wraps("vllm.v1.engine.async_llm:AsyncLLM.__init__")
def end_with_launcher(function: Callable[..., None]) -> Callable[..., None]:
    """End an API server of several with the process that started them all.

    It would hold the port, healthy, and its requests wait for engines that are gone.
    Removable when vLLM's API servers watch their launcher.
    """
    from vllm_dllm.models.registry import is_ours
    from vllm_dllm.orphans import end_with_parent

    def __init__(self: "AsyncLLM", *args: Any, **kwargs: Any) -> None:
        function(self, *args, **kwargs)
        if is_ours(self.model_config):
            end_with_parent()

    return __init__


@wraps("vllm.v1.executor.multiproc_executor:MultiprocExecutor.shutdown")
def kill_waiting_ranks(function: Callable[..., None]) -> Callable[..., None]:
    """Kill the other ranks of an engine when one has died.

    They wait for what it would have sent, for ever. vLLM gives them ten seconds to end
    by themselves, and tells clients after that.
    Removable when vLLM tells clients first.
    """
    from vllm_dllm.models.registry import is_ours

    def shutdown(self: "MultiprocExecutor") -> None:
        if self.is_failed and is_ours(self.vllm_config.model_config):
            for worker in self.workers or ():
                worker.proc.kill()
        function(self)

    return shutdown
