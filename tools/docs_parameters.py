"""The tables of docs/parameters.md that follow from the code: `--check` or rewrite.

Names, types, ranges, defaults and descriptions are those of the pydantic models, the
rules that use a parameter are asked. What is known besides stays in the text around.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vllm_dllm.cli import FLAGS  # noqa: E402
from vllm_dllm.config import DllmConfig  # noqa: E402
from vllm_dllm.decoding.registry import BUFFERED, NAMES, get_rule  # noqa: E402
from vllm_dllm.params import (  # noqa: E402
    BUFFER_FIELDS,
    FIELDS_OF_RULES,
    FULL_ATTENTION_FIELDS,
    PREFIX,
    WINDOW_FIELDS,
    DllmParams,
    RuleParams,
    in_words,
)

PAGE = ROOT / "docs" / "parameters.md"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def server_rows() -> list[list[str]]:
    """The choices of a server that are not only defaults of its requests."""
    rows = [["field", "flag", "type and range", "default", "meaning"]]
    properties = properties_of(DllmConfig)
    parameters_alone = RuleParams.model_fields.keys() - {*FLAGS}
    for name, schema in properties.items():
        if name in parameters_alone:
            continue
        flag = f"--dllm-{name.replace('_', '-')}" if name in FLAGS else ""
        rows.append(
            [
                f"`{name}`",
                f"`{flag}`" if flag else "",
                type_of(name, schema),
                default_of(schema),
                meaning_of(schema),
            ]
        )
    return rows


def request_rows() -> list[list[str]]:
    """The fields of a request."""
    rows = [["field", "type and range", "default", "rules that use it", "meaning"]]
    for name, schema in properties_of(DllmParams).items():
        rows.append(
            [
                f"`{PREFIX}{name}`",
                type_of(name, schema),
                default_of(schema),
                users_of(name),
                meaning_of(schema),
            ]
        )
    return rows


def properties_of(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each field; that of an optional one without its null."""
    properties: dict[str, dict[str, Any]] = {}
    for name, schema in model.model_json_schema()["properties"].items():
        options = [kind for kind in schema.get("anyOf", []) if kind["type"] != "null"]
        properties[name] = schema | (options[0] if options else {})
    return properties


def type_of(name: str, schema: dict[str, Any]) -> str:
    """A type and its range, in words."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if name == "algorithm":
        return "name of a rule"
    names = {
        "ge": "minimum",
        "gt": "exclusiveMinimum",
        "le": "maximum",
        "lt": "exclusiveMaximum",
    }
    limits = in_words({n: schema[key] for n, key in names.items() if key in schema})
    kind = f"list of {type_of(name, items)}" if (items := schema.get("items")) else ""
    return ", ".join([kind or schema["type"], limits]).removesuffix(", ")


def default_of(schema: dict[str, Any]) -> str:
    """The model's own default; nothing where it has none."""
    value = schema.get("default")
    if value in (None, []):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str) else number(value)


def number(value: float) -> str:
    """1000000.0 as 1,000,000."""
    return f"{value:,.10g}"


def meaning_of(schema: dict[str, Any]) -> str:
    return " ".join(schema["description"].split()).replace("|", "\\|")


def users_of(name: str) -> str:
    """The rules that a parameter changes something for."""
    if name in FULL_ATTENTION_FIELDS:
        return "all, with full attention"
    if name in WINDOW_FIELDS:
        return "all, with WeDLM"
    if name in FIELDS_OF_RULES:
        return f"`{FIELDS_OF_RULES[name]}`"
    if name == "block_length":
        return "all"
    rules = [rule for rule in NAMES if uses(rule, name)]
    return ", ".join(f"`{rule}`" for rule in rules) or "all"


def uses(rule: str, name: str) -> bool:
    """Whether a rule reads a parameter, with one block at a time or with several."""
    if rule not in BUFFERED:
        return name in get_rule(rule).parameters
    several = get_rule(BUFFERED[rule]).parameters
    of_buffers = {"buffer_size", *BUFFER_FIELDS} - {"semi_complete_threshold"}
    return name in {*get_rule(rule).parameters, *several, *of_buffers}


def table(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    line = "|---" * len(rows[0]) + "|"
    return "\n".join([head, line, *body]).replace("|  |", "| |") + "\n"


def current(text: str) -> str:
    """`text` with its generated parts made anew."""
    tables = {"server": server_rows, "request": request_rows}
    found = [name for _, name, _ in PART.findall(text)]
    if sorted(found) != sorted(tables):
        sys.exit(f"{PAGE}: generated parts are {found}, not {list(tables)}")
    return PART.sub(lambda part: part[1] + table(tables[part[2]]()) + part[3], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    text = PAGE.read_text()
    made = current(text)
    if made == text:
        return
    if args.check:
        sys.exit(f"{PAGE} is not current; run: python tools/docs_parameters.py")
    PAGE.write_text(made)


if __name__ == "__main__":
    main()
