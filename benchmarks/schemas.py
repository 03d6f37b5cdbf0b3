"""Ten schemas for benchmarks/structured.py: nested, arrays, enums, patterns, Unicode.

What they allow is bounded, so that an answer ends within its `max_tokens` even where a
small model writes what it likes.
"""

from typing import Any

Schema = dict[str, Any]


def thing(**properties: Schema) -> Schema:
    """An object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def some(items: Schema, least: int, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def written(pattern: str) -> Schema:
    return {"type": "string", "pattern": f"^{pattern}$"}


def one_of(*values: Any) -> Schema:
    return {"enum": [*values]}


FLAG: Schema = {"type": "boolean"}
DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
YEAR: Schema = {"type": "integer", "minimum": 1900, "maximum": 2100}
NAME = written("[A-Z][a-z]{1,7}")
PRICE = thing(amount=written(r"[0-9]{1,3}\.[0-9]{2}"), currency=one_of("EUR", "USD"))
LEAF = thing(value=DIGIT)

SCHEMAS: dict[str, Schema] = {
    "person": thing(name=NAME, born=thing(year=YEAR, city=one_of("Oslo", "Rome"))),
    "digits": some(DIGIT, 1, 5),
    "color": thing(color=one_of("red", "green", "blue", "dark blue", "dark green")),
    "offer": thing(article=written("[A-Z]{2}-[0-9]{4}"), price=PRICE, in_stock=FLAG),
    "unicode": thing(
        größe=one_of("klein", "mittel", "groß"), 日本=one_of("東京", "京都")
    ),
    "points": thing(points=some(thing(x=DIGIT, y=DIGIT), 1, 3)),
    "either": thing(result={"anyOf": [DIGIT, FLAG, {"type": "null"}, NAME]}),
    "tree": thing(left=thing(left=LEAF, right=LEAF), right=LEAF),
    "moment": thing(
        day=written("20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"),
        time=written("([01][0-9]|2[0-3]):[0-5][0-9]"),
        zone=one_of("UTC", "CET", "America/New_York"),
    ),
    "settings": thing(
        mode={"const": "automatic"},
        levels=some(one_of("low", "medium", "high"), 2, 2),
        limits=thing(minimum=DIGIT, maximum=DIGIT, is_strict=FLAG),
    ),
}
