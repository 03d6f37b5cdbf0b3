"""Arguments of tools are objects of the declared schema, whatever a client left out."""

from typing import Any

import pytest

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
