"""A patch of `vllm run-batch`, which answers a file of requests, one in a line."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Self

from pydantic import ValidationError

from vllm_dllm.compat.patch import wraps
from vllm_dllm.models.registry import is_ours

CHATS = "/v1/chat/completions"
"""The one route of a file that generates; vLLM names its routes where another is
asked for."""
_RUN_BATCH = "vllm.entrypoints.launchers.run_batch"


@wraps(
    f"{_RUN_BATCH}:run_batch",
    uses=(
        f"{_RUN_BATCH}:BatchRequestInput",
        f"{_RUN_BATCH}:make_async_error_request_output",
    ),
)
def answer_unreadable_lines(
    function: Callable[..., Awaitable[None]],
) -> Callable[..., Awaitable[None]]:
    """Answer a line that cannot be read with an error of its own.

    In vLLM 0.32 the whole run ends, and with it the answers of all other lines; 0.33
    refuses such a file before it loads a model, and fewer lines are left to this.
    Removable with 0.32.
    """
    from vllm.entrypoints.launchers import run_batch as launcher

    from vllm_dllm.serving.body import check_body

    class Line(launcher.BatchRequestInput):
        fault: str | None = None
        """Why it is no request."""

        @classmethod
        def model_validate_json(cls, json_data: str, **kwargs: Any) -> Self:
            line = json.loads(json_data)
            if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
                raise ValueError(f"a line without a custom_id: {json_data[:80]!r}")
            url = line.get("url")
            if isinstance(url, str) and url != CHATS:
                return cls.model_construct(**line)
            try:
                check_body(json_data.encode(), line.get("body"))
                return super().model_validate_json(json_data, **kwargs)
            except Exception as error:  # what readers of fields may fail with
                fault = reason_of(error) if url else "url: Field required"
                return cls.model_construct(**line | {"url": "", "fault": fault})

    tell = launcher.make_async_error_request_output

    def make_error(request: Any, error_msg: str) -> Any:
        return tell(request, error_msg=getattr(request, "fault", None) or error_msg)

    async def run_batch(engine_client: Any, *args: Any) -> None:
        if is_ours(engine_client.model_config):
            launcher.BatchRequestInput = Line
            launcher.make_async_error_request_output = make_error
        await function(engine_client, *args)

    return run_batch


def reason_of(error: Exception) -> str:
    """What is wrong with which field."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        for fault in error.errors()
    )
