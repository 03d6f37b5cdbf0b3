"""A patch that keeps the pieces of a stream apart."""

from collections.abc import Callable
from typing import Any

from vllm_dllm.compat.patch import wraps

_STATE = "vllm.v1.engine.output_processor:RequestState"


@wraps(f"{_STATE}._new_completion_output")
def own_logprobs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a piece that comes before the first token logprobs of its own: none.

    vLLM gives it the list that it goes on to fill, and adds those of later pieces to it
    where a client is slow: tokens would have the logprobs of others.
    Removable when vLLM gives each piece a list of its own.
    """

    def _new_completion_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = function(self, *args, **kwargs)
        if output.logprobs is not None and not output.token_ids:
            output.logprobs = output.logprobs[:0]
        return output

    return _new_completion_output
