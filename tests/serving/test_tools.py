"""Arguments of tools are objects of the declared schema, whatever a client left out."""

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.abstract_parser import Parser
from vllm.parser.parser_manager import ParserManager
from vllm.plugins import load_general_plugins

from tests.specs import MODELS
from vllm_dllm.serving.tools import arguments_schema

EMPTY = {"type": "object", "properties": {}}
POINT = {
    "type": "object",
    "properties": {"x": {"enum": [1, 23]}, "y": {"$ref": "#/$defs/side"}},
    "required": ["x", "y"],
    "additionalProperties": False,
    "$defs": {"side": {"type": "object", "properties": {"far": {"type": "boolean"}}}},
}
NOT_ENFORCED = {"type": "object", "properties": {"a": {"type": "objekt"}}}


@pytest.mark.parametrize(
    ("declared", "schema"),
    [
        (None, EMPTY),
        ({}, EMPTY),
        (EMPTY, EMPTY),
        (POINT, POINT),
        ({"type": "object"}, {"type": "object"}),
        ({"description": "none"}, {"description": "none", "type": "object"}),
        ({"properties": {}}, EMPTY),
        ({"type": ["object", "null"], "properties": {}}, EMPTY),
        ({"anyOf": [EMPTY, {"type": "null"}]}, {"anyOf": [EMPTY]}),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": EMPTY}},
            {"$ref": "#/$defs/a", "$defs": {"a": EMPTY}},
        ),
        ({"$ref": "#/$defs/b", "$defs": {"a": EMPTY}}, {"type": "object"}),
        ({"$ref": "#/$ref", "$defs": {"a": EMPTY}}, {"type": "object"}),
        ({"$ref": "#"}, {"type": "object"}),
        ({"anyOf": [POINT, {"type": "string"}]}, {"type": "object"}),
        ({"allOf": [POINT, EMPTY]}, {"type": "object"}),
        ({"type": "string"}, {"type": "object"}),
        ({"type": "object", "enum": [False]}, {"type": "object"}),
        ({"properties": None}, {"type": "object"}),
        (NOT_ENFORCED, {"type": "object"}),
    ],
    ids=str,
)
def test_a_schema_is_followed_where_it_allows_objects_alone(
    declared: dict[str, Any] | None, schema: dict[str, Any]
) -> None:
    """Where it allows more, a call has arguments that no client can read."""
    assert arguments_schema(declared, None) == schema


def test_a_client_may_ask_for_no_schema_and_for_an_error() -> None:
    """`strict` is theirs: false for any object, true for this schema or none."""
    assert arguments_schema(POINT, False) == {"type": "object"}
    assert arguments_schema(POINT, True) == POINT
    with pytest.raises(ValueError, match='grammar: Unsupported type "objekt"'):
        arguments_schema(NOT_ENFORCED, True)
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"type": "object", "properties": {"in": deep}}
    assert arguments_schema(deep, None) == {"type": "object"}
    with pytest.raises(ValueError, match=r"grammar: .* nested too deeply"):
        arguments_schema(deep, True)


# vLLM's parsers


TOOL = {"type": "function", "function": {"name": "f", "parameters": POINT}}


def parser_of(name: str, architecture: str, request: ChatCompletionRequest) -> Parser:
    load_general_plugins()
    parser_class = ParserManager.get_parser(name, enable_auto_tools=True)
    assert parser_class is not None
    model_config = SimpleNamespace(
        architectures=[architecture], hf_config=SimpleNamespace(model_type="")
    )
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tiny-llada2")
    return parser_class(tokenizer, request.tools, model_config=model_config)


def request_of(choice: Any = "auto", **fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(
        messages=[{"role": "user", "content": "?"}],
        tools=copy.deepcopy([TOOL]),
        tool_choice=choice,
        **fields,
    )


NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("parser", "choice", "text"),
    [
        ("hermes", "auto", '<tool_call>{"name": "f", "arguments": "no"}</tool_call>'),
        ("hermes", "required", '<tool_call>{"name": "f", "argu'),
        ("phi4_mini_json", "required", '[{"name": "f", "param'),
        ("phi4_mini_json", NAMED, '{"x": 1'),
        ("phi4_mini_json", NAMED, "false"),
    ],
)
def test_a_call_without_an_object_is_text(parser: str, choice: Any, text: str) -> None:
    """`/v1/messages` refuses such a call of its own; or what was answered is lost."""
    request = request_of(choice)
    ours = parser_of(parser, "LLaDA2MoeModelLM", request)
    assert ours.parse(text, request, enable_auto_tools=True) == (None, text, None)


def test_a_call_with_an_object_is_a_call() -> None:
    """The tests above would pass without any calls."""
    text = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    request = request_of()
    ours = parser_of("hermes", "LLaDA2MoeModelLM", request)
    _, content, calls = ours.parse(text, request, enable_auto_tools=True)
    assert content is None and calls is not None
    assert [json.loads(call.arguments) for call in calls] == [{"x": 1}]


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
def test_a_grammar_holds_the_schema_and_the_request_its_tools(choice: Any) -> None:
    """Chat templates show the tools of the request; a grammar of "auto" alone would
    decode every answer token by token."""
    request = request_of(choice)
    before = request.tools[0].model_dump()
    ours = parser_of("hermes", "LLaDAModelLM", request)
    adjusted = ours.adjust_request(request)
    assert adjusted.tools[0].model_dump() == before
    grammar = adjusted.structured_outputs
    if choice == "auto":
        assert grammar is None
    else:
        assert json.dumps(POINT) in grammar.structural_tag


def test_tools_of_other_models_are_as_they_were() -> None:
    """The plugin is loaded for every model of the machine."""
    text = '<tool_call>{"name": "f", "arguments": false}</tool_call>'
    request = request_of("required")
    theirs = parser_of("hermes", "Qwen3ForCausalLM", request)
    _, _, calls = theirs.parse(text, request, enable_auto_tools=True)
    assert [call.arguments for call in calls or ()] == ["false"]
    adjusted = theirs.adjust_request(request)
    assert json.dumps(POINT) not in adjusted.structured_outputs.structural_tag
