"""What the arguments of a tool have to be: an object, of the schema that it declares.

vLLM obeys the schemas of tools with `"strict": true` alone; to others of its clients'
tools a model may answer any JSON value, which their clients cannot read.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import check_json_nesting
from xgrammar import Grammar

from vllm_dllm.quoting import quoted

ANY_OBJECT: dict[str, Any] = {"type": "object"}
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}
COMBINATIONS = ("anyOf", "oneOf")
OTHERWISE_TYPED = {"type", "$ref", "allOf", "enum", "const", *COMBINATIONS}
"""Where a schema says what type its values have."""
MAX_REFERENCES = 8
"""How far a schema's type may be away from its beginning."""


def follow_schemas(tools: Sequence[Any]) -> list[Any]:
    """Copies of a request's tools that are strict and whose arguments are objects."""
    return [follow_schema(tool) for tool in tools]


def follow_schema(tool: Any) -> Any:
    """The same of one tool; what is no function stays as it is."""
    if hasattr(tool, "tools"):  # a namespace of them
        return tool.model_copy(update={"tools": follow_schemas(tool.tools)})
    function = getattr(tool, "function", tool)
    if not hasattr(function, "parameters"):
        return tool
    schema = arguments_schema(function.parameters, function.strict)
    function = function.model_copy(update={"parameters": schema, "strict": True})
    if hasattr(tool, "function"):
        return tool.model_copy(update={"function": function})
    return function


def must_call(request: Any) -> bool:
    """Whether the request wants a call, and no other answer."""
    return request.tool_choice not in (None, "none", "auto")


def needs_grammar(request: Any) -> bool:
    """Whether vLLM makes a grammar of the request's tools."""
    if not request.tools or request.tool_choice in (None, "none"):
        return False
    if must_call(request) or request.parallel_tool_calls is False:
        return True
    functions = [getattr(tool, "function", tool) for tool in request.tools]
    return any(getattr(function, "strict", None) for function in functions)


def arguments_schema(
    declared: dict[str, Any] | None, strict: bool | None
) -> dict[str, Any]:
    """The schema of a tool's arguments.

    Args:
        declared: by the request; none means no arguments, as in OpenAI's API.
        strict: of the request. False asks for no schema, True for this one or an error.

    Raises:
        ValueError: if `strict` and no grammar can be made of the schema.
    """
    if strict is False:
        return ANY_OBJECT
    if not declared:
        return NO_ARGUMENTS
    schema = of_objects(declared)
    reason = why_no_grammar(schema)
    if reason is None and allows_only_objects(schema, schema):
        return schema
    if strict and reason is not None:
        raise ValueError(
            f"tools: the parameters {quoted(declared)} of a strict tool make no "
            f"grammar: {reason}"
        )
    return ANY_OBJECT


def of_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without what it says of values that are no objects."""
    schema = dict(schema)
    kind = schema.get("type")
    if isinstance(kind, list) and "object" in kind:
        schema["type"] = "object"
    if not schema.keys() & OTHERWISE_TYPED:
        schema["type"] = "object"
    for name in COMBINATIONS:
        if isinstance(branches := schema.get(name), list):
            # As schema languages write that the value may be missing.
            schema[name] = [b for b in branches if b != {"type": "null"}]
    return schema


def allows_only_objects(schema: Any, root: dict[str, Any], depth: int = 0) -> bool:
    """Whether it is sure that the schema allows objects alone.

    Args:
        root: what its references are relative to.
    """
    if not isinstance(schema, dict) or depth > MAX_REFERENCES:
        return False
    depth += 1
    if isinstance(reference := schema.get("$ref"), str):
        if not reference.startswith("#/"):
            return False
        there: Any = root
        for name in reference.removeprefix("#/").split("/"):
            there = there.get(name) if isinstance(there, dict) else None
        return allows_only_objects(there, root, depth)
    for name in (*COMBINATIONS, "allOf"):
        if isinstance(branches := schema.get(name), list):
            # Of what several schemas allow together grammars know nothing.
            known = isinstance(branches, list) and (
                name != "allOf" or len(branches) < 2
            )
            return known and all(
                allows_only_objects(branch, root, depth) for branch in branches
            )
    return schema.get("type") == "object" and not schema.keys() & {"enum", "const"}


def why_no_grammar(schema: dict[str, Any]) -> str | None:
    """What the schema has that grammars cannot express; None if nothing."""
    try:
        check_json_nesting(schema)  # before the parser, which has no such limit
    except VLLMValidationError as error:
        return str(error)
    return parser_error(json.dumps(schema))


@lru_cache(maxsize=1024)
def parser_error(schema: str) -> str | None:
    try:
        Grammar.from_json_schema(schema)
    except RuntimeError as error:
        # Behind the time and the place in the parser's own source.
        return str(error).rpartition(": ")[2].strip()
    return None


def is_object(arguments: str) -> bool:
    """Whether the arguments of a call are what a client can read."""
    try:
        return isinstance(json.loads(arguments), dict)
    except ValueError:
        return False
