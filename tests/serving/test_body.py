"""What cannot be read of a body is refused by name, before vLLM reads it."""

import json
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from vllm_dllm.serving.body import check_body

CHAT = {"messages": [{"role": "user", "content": "a"}]}


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


UNREADABLE: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": "json"}, "structured_outputs='json' "),
    ({"structured_outputs": []}, r"structured_outputs=\[\] "),
    ({"messages": 1}, "messages=1 .* array"),
    ({"messages": None}, "messages=None "),
    ({"messages": []}, r"messages=\[\] .* at least one"),
    (chat(1), "messages.0=1 .* object"),
    (chat([{"content": 1}]), "messages.0.0.content=1 "),
    (chat({"content": 1}), "messages.0.content=1 .* text, or an array"),
    (chat({"content": {"a": 1}}), "messages.0.content={'a': 1} "),
    (chat({}, {"content": ["a", 1]}), "messages.1.content.1=1 .* object"),
    (chat({"content": [{"type": 5}]}), "messages.0.content.0.type=5 "),
    (chat({"content": [{"type": "text", "text": 5}]}), "messages.0.content.0.text=5 "),
    (chat({"tool_calls": 5}), "messages.0.tool_calls=5 .* array of calls"),
    (chat({"tool_calls": [[]]}), r"messages.0.tool_calls.0=\[\] .* object"),
    (chat({"tool_calls": [{"function": 5}]}), "messages.0.tool_calls.0.function=5 "),
    (
        chat({"tool_calls": [{"function": {"name": "a", "arguments": [1]}}]}),
        r"messages.0.tool_calls.0.function.arguments=\[1\] .* text",
    ),
    ({"prompt": "a\ud800"}, r"prompt='a\\ud800' .*Unicode"),
    ({"stop": ["b", "\udfff"]}, r"stop\.1='\\udfff' "),
    ({"vllm_xargs": {"\ud800": 1}}, r"vllm_xargs='\\ud800' "),
    ({"\ud800": 1}, r"a field's name='\\ud800' "),
    (
        {"messages": [{"role": "user", "content": "\ud83d"}]},
        r"messages\.0\.content='\\ud83d' ",
    ),
]


@pytest.mark.parametrize(("body", "said"), UNREADABLE)
def test_what_cannot_be_read_is_refused_by_name(
    body: dict[str, Any], said: str
) -> None:
    """vLLM answers 500 to some of these, and names the field for none."""
    with pytest.raises(VLLMValidationError, match=said) as refused:
        check_body(json.dumps({**CHAT, **body}).encode(), {**CHAT, **body})
    refused.value.args[0].encode()  # as an answer needs it


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"structured_outputs": None},
        {"structured_outputs": {"regex": "a"}},
        {"prompt": "a\N{GRINNING FACE}\ud7ff"},
        {"prompt": [1, 2, 3]},
        chat({"role": "user", "content": ["a", {"type": "text", "text": "b"}]}),
        chat([{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]),
        chat({"content": []}, {"content": None, "tool_calls": []}),
        chat({"tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]}),
        {**CHAT, "unknown": [[], {}, "\N{GRINNING FACE}"]},
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_other_bodies_are_left_to_vllm(body: Any, ascii_only: bool) -> None:
    """Escaped characters outside of 16 bits come as whole pairs."""
    check_body(json.dumps(body, ensure_ascii=ascii_only).encode(), body)


def test_deep_bodies_are_no_recursion() -> None:
    """One more way to end in a 500."""
    depth = 900  # Python's own parser ends not far above
    body = {"a": json.loads("[" * depth + '"\\ud800"' + "]" * depth)}
    with pytest.raises(VLLMValidationError):
        check_body(json.dumps(body).encode(), body)


def test_what_was_sent_as_raw_halves_is_found() -> None:
    """JSON in bytes may hold what UTF-8 forbids, and Python reads it."""
    sent = b'{"prompt": "\xed\xa0\x80"}'
    with pytest.raises(VLLMValidationError, match=r"prompt='\\ud800'"):
        check_body(sent, json.loads(sent))
