"""What was answered, and what of it was not right."""

import json
from collections import Counter
from typing import Any

from tools.mix.answers import Texts
from tools.mix.kinds import Asked

SHOWN = 20
"""Most complaints that are kept in words."""


class Ledger:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()
        self.first: dict[str, Texts] = {}
        self.complaints: list[str] = []

    def complain(self, what: str) -> None:
        if len(self.complaints) < SHOWN:
            self.complaints.append(what)

    def answered(self, asked: Asked, texts: Texts) -> None:
        """Compare an answer with the first one to the same request."""
        self.counts["answered"] += 1
        self.kinds[asked.kind] += 1
        self.rules[asked.body.get("dllm_algorithm", "")] += 1
        if not asked.repeats:
            return
        first = self.first.setdefault(key_of(asked), texts)
        if first is not texts:
            self.counts["compared"] += 1
            if first != texts:
                self.counts["other answers"] += 1
                self.complain(f"{described(asked)}: first {first}, then {texts}")

    def cut(self, asked: Asked, texts: Texts) -> None:
        """The same of the beginning of one."""
        self.counts["cut"] += 1
        whole = self.first.get(key_of(asked))
        if not asked.repeats or whole is None:
            return
        self.counts["beginnings compared"] += 1
        if any(not whole.get(i, "").startswith(text) for i, text in texts.items()):
            self.counts["other answers"] += 1
            self.complain(f"{described(asked)}: first {whole}, then, cut, {texts}")

    def failed(self, asked: Asked, why: str) -> None:
        self.counts["failed"] += 1
        self.complain(f"{described(asked)}: {why}")


def key_of(asked: Asked) -> str:
    body = {name: value for name, value in asked.body.items() if name != "stream"}
    return asked.path + json.dumps(body, sort_keys=True)


def described(asked: Asked) -> str:
    body: dict[str, Any] = asked.body
    return f"{asked.kind} {asked.path} {json.dumps(body)[:600]}"
