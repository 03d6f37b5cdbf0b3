"""Patches that make a tool's arguments an object of its schema.

vLLM leaves the arguments of tools without `"strict": true` free, so that a call may
have `false` for its arguments; `/v1/messages` then refuses its own answer. Removable
when vLLM holds arguments to an object.
"""

from collections.abc import Callable
from typing import Any

from vllm_dllm.compat.patch import refusing, wraps
from vllm_dllm.models.registry import is_ours


@wraps("vllm.parser.abstract_parser:Parser.__init__")
def tell_parsers_of_the_model(function: Callable[..., None]) -> Callable[..., None]:
    """Let a parser know whether it reads answers of one of our models."""

    def __init__(
        self: Any, *args: Any, model_config: Any = None, **kwargs: Any
    ) -> None:
        function(self, *args, model_config=model_config, **kwargs)
        self.serves_ours = is_ours(model_config)

    return __init__


@wraps("vllm.parser.abstract_parser:DelegatingParser.adjust_request")
def follow_tool_schemas(function: Callable[..., Any]) -> Callable[..., Any]:
    """Obey the schemas of all tools whose call a grammar enforces.

    The request has its own tools back when the grammar is made.
    """
    from vllm_dllm.serving.tools import follow_schemas, needs_grammar

    def adjust_request(self: Any, request: Any) -> Any:
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


@wraps("vllm.parser.abstract_parser:DelegatingParser.parse")
def keep_broken_calls_as_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """Leave what was called without a grammar and is no object as text, and a call that
    was cut off."""
    from vllm_dllm.serving.tools import is_object, must_call

    def parse(
        self: Any, text: str, request: Any, *args: Any, **kwargs: Any
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
