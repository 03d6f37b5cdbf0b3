"""What an answer says, whatever its route and whether it was streamed."""

import json
from typing import Any

Texts = dict[int, str]
"""The text of each choice."""


class Broken(Exception):
    """An answer that is none, or has no end."""


def of_whole(answer: dict[str, Any]) -> Texts:
    """Those of an answer that came in one piece."""
    if "decisions" in answer:
        best = [
            max(range(len(one["labels"])), key=lambda i: one["labels"][i]["share"])
            for one in answer["decisions"]
        ]
        return dict(enumerate(map(str, best)))
    if "choices" not in answer:
        return {0: answer["text"]}
    return {choice["index"]: said(choice) for choice in answer["choices"]}


def said(choice: dict[str, Any]) -> str:
    """The text that a choice, or a piece of one, has or adds."""
    part = choice.get("message") or choice.get("delta") or choice
    text = part.get("content") or part.get("text") or ""
    for call in part.get("tool_calls") or ():
        function = call.get("function") or {}
        text += (function.get("name") or "") + (function.get("arguments") or "")
    return text


class Stream:
    """A stream as far as it was read."""

    def __init__(self) -> None:
        self.texts: Texts = {}
        self.events = 0
        self.ended = False

    def read(self, line: str) -> None:
        """Raises Broken for an error in the stream."""
        if not line.startswith("data: "):
            return
        self.events += 1
        if line == "data: [DONE]":
            self.ended = True
            return
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise Broken(line)
        if event.get("type") == "append":
            self.add(0, event["text"])
        for choice in event.get("choices", ()):
            self.add(choice["index"], said(choice))

    def add(self, index: int, text: str) -> None:
        self.texts[index] = self.texts.get(index, "") + text
