"""Answers of offline engines, against cases that know how many forwards they may take.

Such a case has `tokens`, `may_take` and `sampling`.
"""

from collections.abc import Sequence
from typing import Any

from tests.engines import Request, tokens_of


def requests_of(cases: Sequence[Any]) -> list[Request]:
    return [(case, case.sampling) for case in cases]


def forwards_of(output: Any) -> int:
    """Those that decided something, as the client is told."""
    return output.outputs[0].spec_decode_metrics.num_draft_tokens


def wrong(cases: Sequence[Any], outputs: Sequence[Any]) -> list[str]:
    """One line for every other answer, or number of forwards."""
    return [
        f"{case}: got {tokens_of(output)} in {forwards_of(output)} forwards"
        for case, output in zip(cases, outputs, strict=True)
        if tokens_of(output) != case.tokens or not case.may_take(forwards_of(output))
    ]
