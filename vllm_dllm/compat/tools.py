"""Patches that make a tool's arguments an object of its schema."""

from collections.abc import Callable
from typing import Any

from vllm_dllm.compat.patch import refusing, wrap_once
from vllm_dllm.models.registry import is_ours


def follow_tool_schemas() -> None:
    """Obey the schemas of all tools whose call a grammar enforces.

    vLLM leaves the arguments of tools without `"strict": true` free, so that a call may
    have `false` for its arguments; `/v1/messages` then refuses its own answer. The
    request has its own tools back when the grammar is made. What was called without
    one and is no object stays text, as does a call that was cut off. Removable when
    vLLM holds arguments to an object.
    """
    from vllm.parser.abstract_parser import DelegatingParser, Parser

    from vllm_dllm.serving.tools import (
        follow_schemas,
        is_object,
        must_call,
        needs_grammar,
    )

    def remember(function: Callable[..., None]) -> Callable[..., None]:
        def __init__(
            self: Parser, *args: Any, model_config: Any = None, **kwargs: Any
        ) -> None:
            function(self, *args, model_config=model_config, **kwargs)
            self.serves_ours = is_ours(model_config)

        return __init__

    def adjust(function: Callable[..., Any]) -> Callable[..., Any]:
        def adjust_request(self: Parser, request: Any) -> Any:
            if not (self.serves_ours and needs_grammar(request)):
                return function(self, request)
            tools = request.tools
            with refusing():
                request.tools = follow_schemas(tools)
            try:
                request = function(self, request)
            finally:
                request.tools = tools
            return request

        return adjust_request

    def keep_text(function: Callable[..., Any]) -> Callable[..., Any]:
        def parse(
            self: Parser, text: str, request: Any, *args: Any, **kwargs: Any
        ) -> tuple[str | None, str | None, list[Any] | None]:
            reasoning, content, calls = function(self, text, request, *args, **kwargs)
            if not self.serves_ours:
                return reasoning, content, calls
            arguments = [call.arguments for call in calls or ()]
            is_lost = not calls and not content and must_call(request)
            if is_lost or not all(map(is_object, arguments)):
                _, content = self.extract_reasoning(text, request)
                calls = None
            return reasoning, content, calls

        return parse

    wrap_once(Parser, "__init__", remember)
    wrap_once(DelegatingParser, "adjust_request", adjust)
    wrap_once(DelegatingParser, "parse", keep_text)
