"""The endpoint plugin: our routes on vLLM's server.

vLLM loads it only when `VLLM_PLUGINS` names it (`VLLM_PLUGINS=dllm`).
"""

from argparse import Namespace
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import (
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import State
from starlette.exceptions import HTTPException as StarletteHTTPException
from vllm import envs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.completion.protocol import CompletionResponse
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.entrypoints.serve.utils.api_utils import (
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from vllm.exceptions import VLLMValidationError

from vllm_dllm.config import DllmConfig
from vllm_dllm.models.registry import is_ours
from vllm_dllm.serving.decisions import (
    DecisionRequest,
    DecisionResponse,
    as_completion,
    readings,
    tokens_of_labels,
)
from vllm_dllm.serving.generate import (
    GenerateRequest,
    GenerateResponse,
    GenerateServing,
)

PAGE = Path(__file__).with_name("page")


def authorized(raw_request: Request) -> None:
    """vLLM guards `/v1` by itself; a route outside of it has to ask."""
    args = raw_request.app.state.args
    keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    guard = AuthenticationMiddleware(raw_request.app, keys)
    if keys and not guard.verify_token(raw_request.headers):
        raise HTTPException(status_code=401, detail="Unauthorized")


RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": GenerateResponse, "content": {"text/event-stream": {}}},
    400: {"model": ErrorResponse},
    401: {},
    404: {"model": ErrorResponse},
}


class JsonRoute(APIRoute):
    """A route that refuses a body which is no text, or too deep, in vLLM's words.

    FastAPI's own answer has none of the fields of an error.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except StarletteHTTPException as error:
                if isinstance(error, HTTPException):  # one of vLLM's or of ours
                    raise
                raise VLLMValidationError(
                    "the body cannot be read; allowed: JSON in UTF-8, not nested by "
                    "the thousand"
                ) from None

        return handler


router = APIRouter(tags=["vllm-dllm"], route_class=JsonRoute)


@router.post(
    "/generate",
    dependencies=[Depends(validate_json_request), Depends(authorized)],
    response_model=None,
    responses=RESPONSES,
)
@router.post(
    "/v1/generate",
    dependencies=[Depends(validate_json_request)],
    response_model=None,
    responses=RESPONSES,
)
@with_cancellation
@load_aware_call
async def generate(request: GenerateRequest, raw_request: Request) -> Response:
    """Answer a prompt; with `stream` and `stream_mode: "denoise"` show every step."""
    serving: GenerateServing | None = getattr(
        raw_request.app.state, "dllm_generate", None
    )
    if serving is None:
        raise HTTPException(404, "The model is not a diffusion language model")
    answer = await serving.create_completion(request.to_completion(), raw_request)
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    if isinstance(answer, GenerateResponse):
        return JSONResponse(answer.model_dump())
    return StreamingResponse(answer, media_type="text/event-stream")


@router.post(
    "/v1/decisions",
    dependencies=[Depends(validate_json_request)],
    response_model=None,
    responses={**RESPONSES, 200: {"model": DecisionResponse}},
)
@with_cancellation
@load_aware_call
async def decide(request: DecisionRequest, raw_request: Request) -> Response:
    """Say how likely each label is as the answer to each prompt, from one forward."""
    state = raw_request.app.state
    if getattr(state, "dllm_generate", None) is None:
        raise HTTPException(404, "The model is not a diffusion language model")
    serving: OpenAIServingCompletion = state.openai_serving_completion
    config = DllmConfig.of(serving.model_config)
    try:
        labels = tokens_of_labels(request, config, serving.renderer.tokenizer)
    except ValueError as error:
        raise VLLMValidationError(str(error), parameter="labels") from None
    completion = as_completion(request, labels, config)
    answer = await serving.create_completion(completion, raw_request)
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    assert isinstance(answer, CompletionResponse)
    return JSONResponse(readings(answer, labels, config).model_dump())


@router.get("/dllm", include_in_schema=False)
def page() -> RedirectResponse:
    return RedirectResponse("dllm/")


class Endpoint:
    """What vLLM's plugin interface asks for."""

    name = "dllm"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)
        app.mount("/dllm", StaticFiles(directory=PAGE, html=True), name="dllm")

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        if engine_client is None or not is_ours(engine_client.model_config):
            return
        state.dllm_generate = GenerateServing.of(state.openai_serving_completion)
