"""What the body of a request has to be before vLLM reads its fields."""

import re
from collections.abc import Iterator
from types import NoneType
from typing import Any

from pydantic import ValidationError
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError

from vllm_dllm.params import describe
from vllm_dllm.quoting import quoted, shortened

Kinds = dict[str, tuple[tuple[type, ...], str]]
"""What fields may be, and the same in words."""

KINDS: Kinds = {
    "structured_outputs": ((dict, NoneType), "an object"),
    "messages": ((list,), "an array of at least one message"),
}
"""What vLLM takes fields for without a look."""
OF_MESSAGE: Kinds = {
    "content": ((str, list, NoneType), "text, or an array of parts"),
    "tool_calls": ((list, NoneType), "an array of calls"),
}
OF_PART: Kinds = {"type": ((str,), "text"), "text": ((str, NoneType), "text")}
OF_CALL: Kinds = {"function": ((dict, NoneType), "an object")}
OF_FUNCTION: Kinds = {"name": ((str,), "text"), "arguments": ((str, NoneType), "text")}

MAYBE_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""Half of a surrogate pair as JSON has it, or a whole one that was escaped."""


def check_body(sent: bytes, body: Any) -> None:
    """Accept a body, which is the JSON that was sent, or say what cannot be read.

    Raises:
        VLLMValidationError: naming the field, its value and what is allowed.
    """
    if not isinstance(body, dict):
        return
    check_kinds(body, KINDS)
    if "messages" in body:
        check_messages(body["messages"])
    # Few bodies have one, and some have a hundred thousand tokens.
    if MAYBE_HALF.search(sent):
        check_characters(body)


def completion_of(fields: dict[str, Any]) -> CompletionRequest:
    """The request to `/v1/completions` that has these fields.

    Raises:
        VLLMValidationError: naming the field, its value and what is allowed.
    """
    check_kinds(fields, KINDS)
    try:
        return CompletionRequest.model_validate(fields)
    except ValidationError as error:
        raise VLLMValidationError(
            describe(error, CompletionRequest),
            parameter=str(error.errors()[0]["loc"][0]),
        ) from None


def check_kinds(fields: Any, known: Kinds, place: str = "") -> None:
    """Refuse what vLLM would fail on instead of refusing it; `place` is in front of
    names of fields."""
    if not isinstance(fields, dict):
        raise unreadable(place.rstrip("."), fields, "an object")
    for name in known.keys() & fields.keys():
        kinds, allowed = known[name]
        if not isinstance(fields[name], kinds):
            raise unreadable(f"{place}{name}", fields[name], allowed)


def unreadable(name: str, value: Any, allowed: str) -> VLLMValidationError:
    return VLLMValidationError(
        f"{name}={quoted(value)} cannot be read; allowed: {allowed}", parameter=name
    )


def check_messages(messages: list[Any], name: str = "messages") -> None:
    """Refuse messages that vLLM reads only once they are in the chat template; of a
    batch of chats, those of each."""
    if not messages:
        raise unreadable(name, messages, KINDS["messages"][1])
    for index, message in enumerate(messages):
        place = f"{name}.{index}."
        if isinstance(message, list):
            check_messages(message, f"{name}.{index}")
            continue
        check_kinds(message, OF_MESSAGE, place)
        content = message.get("content")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if not isinstance(part, str):
                check_kinds(part, OF_PART, f"{place}content.{number}.")
        for number, call in enumerate(message.get("tool_calls") or ()):
            of_call = f"{place}tool_calls.{number}."
            check_kinds(call, OF_CALL, of_call)
            check_kinds(call.get("function") or {}, OF_FUNCTION, f"{of_call}function.")


def check_characters(body: dict[str, Any]) -> None:
    """Refuse text that no tokenizer and no answer can be given."""
    for place, text in texts_of(body):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise VLLMValidationError(
                f"{place}={quoted(text)} has half of a surrogate pair; allowed: "
                "characters of Unicode",
                parameter=place,
            )


def texts_of(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every string of a body and where it stands, names of fields before values."""
    waiting: list[tuple[str, Any]] = [("", body)]
    while waiting:
        place, value = waiting.pop()
        match value:
            case str():
                yield place, value
            case dict():
                for name in value:
                    yield place or "a field's name", name
                waiting += [
                    (f"{place}.{shortened(name)}".lstrip("."), inner)
                    for name, inner in value.items()
                ]
            case list():
                waiting += [
                    (f"{place}.{index}", inner) for index, inner in enumerate(value)
                ]
