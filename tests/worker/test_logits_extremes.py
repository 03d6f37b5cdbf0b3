"""Whatever vLLM accepts of a request, its logits can be computed and drawn from."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.profiler import profile
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from vllm_dllm.ops.sample import SamplingFilters, sample
from vllm_dllm.worker.logits import LIMIT, LogitsRules

VOCAB, MASK = 12, 11
INF = math.inf

tokens = st.integers(0, VOCAB - 1)
penalties = st.floats(-2, 2) | st.sampled_from([-2.0, 0.0, 2.0])


@dataclass
class Case:
    """A request, its sequence and some positions, as vLLM's validators allow them."""

    fields: dict[str, Any] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    """End tokens of the checkpoint, which nothing compares with its vocabulary."""
    bad_words: list[list[int]] = field(default_factory=list)
    grammar: bool = False
    prompt: list[int] = field(default_factory=lambda: [1])
    answer: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=lambda: [1])
    size: float = 3.0
    """Of the logits."""

    def params(self) -> SamplingParams:
        fields = self.fields
        if self.grammar:
            fields = fields | {"structured_outputs": StructuredOutputsParams(regex="a")}
        params = SamplingParams(max_tokens=None, **fields)
        params._all_stop_token_ids.update(self.ends)
        params._bad_words_token_ids = self.bad_words or None
        return params

    def logits(self) -> torch.Tensor:
        """[rows, VOCAB]; a grammar has left few tokens, and the mask never is one."""
        random = torch.Generator().manual_seed(len(self.positions))
        logits = torch.randn(len(self.positions), VOCAB, generator=random) * self.size
        if self.grammar:
            logits[:, 2:9] = -INF
        logits[:, MASK] = -INF
        return logits


@st.composite
def cases(draw: st.DrawFn) -> Case:
    wide = st.integers(-2, VOCAB + 3) | tokens
    fields = {
        "presence_penalty": penalties,
        "frequency_penalty": penalties,
        "repetition_penalty": st.floats(0, exclude_min=True, allow_infinity=False)
        | st.floats(0.5, 2.0),
        "logit_bias": st.dictionaries(tokens, st.floats() | st.floats(-100, 100)),
        "min_tokens": st.integers(0, 12) | st.integers(0, 2**63 - 1),
        "stop_token_ids": st.lists(tokens) | st.just(list(range(VOCAB))),
        "allowed_token_ids": st.lists(tokens, min_size=1).filter(
            lambda allowed: set(allowed) != {MASK}
        ),
    }
    prompt = draw(st.lists(wide, min_size=1, max_size=6))
    answer = draw(st.lists(tokens | st.just(-1), max_size=10))
    ends = len(prompt) + len(answer)
    words = st.lists(wide, max_size=3)
    return Case(
        fields=draw(st.fixed_dictionaries({}, optional=fields)),
        ends=draw(st.lists(wide, max_size=3)),
        bad_words=draw(
            st.lists(words, max_size=6) | st.just([[t] for t in range(VOCAB)])
        ),
        grammar=draw(st.booleans()),
        prompt=prompt,
        answer=answer,
        positions=draw(st.lists(st.integers(0, ends + 3), min_size=1, max_size=6)),
        size=draw(st.sampled_from([0.0, 3.0, 1e4, 1e30])),
    )


def wanted(case: Case, row: list[float], position: int) -> list[float]:
    """The row afterwards, token by token, in float32."""
    params, start = case.params(), len(case.prompt)
    place = position - start
    values = [np.float32(value) for value in row]
    for token, bias in (params.logit_bias or {}).items():
        values[token] += np.float32(min(LIMIT, max(-LIMIT, bias)))
    if params.allowed_token_ids is not None:
        banned = set(range(VOCAB)) - set(params.allowed_token_ids)
        values = without(values, banned)
    for token, value in enumerate(values):
        count = sum(
            other == token for index, other in enumerate(case.answer) if index != place
        )
        factor = params.repetition_penalty
        if (count or token in case.prompt) and factor != 1 and value != -INF:
            factor = np.float32(min(LIMIT, factor))
            value = value / factor if value > 0 else value * factor
            value = min(np.float32(LIMIT), max(np.float32(-LIMIT), value))
        value -= np.float32(params.frequency_penalty) * np.float32(count)
        value -= np.float32(params.presence_penalty) * np.float32(count > 0)
        values[token] = value
    banned = set()
    if place < params.min_tokens:
        banned |= params.all_stop_token_ids
    for words in case.bad_words:
        if not set(words) <= set(range(VOCAB)):
            continue
        for index, token in enumerate(words):
            others = (
                0 <= place - index + other < len(case.answer)
                and case.answer[place - index + other] == word
                for other, word in enumerate(words)
                if other != index
            )
            if all(others):
                banned.add(token)
    return without(values, banned)


def without(values: list[Any], banned: set[int]) -> list[Any]:
    """The values with those tokens banned, unless no other is left."""
    left = [-INF if token in banned else v for token, v in enumerate(values)]
    return values if max(left) == -INF else left


@given(cases())
@example(Case({"repetition_penalty": 1e-300}, size=0.0))
@example(Case({"repetition_penalty": 1e300, "presence_penalty": -2.0}, size=1e30))
@example(Case({"logit_bias": {3: math.nan, 4: INF, 5: -INF}}))
@example(Case({"min_tokens": 2**63 - 1}, ends=[-1, VOCAB, 5]))
@example(Case({"min_tokens": 5, "stop_token_ids": list(range(VOCAB))}))
@example(Case({"allowed_token_ids": [3, 3, MASK]}, bad_words=[[3]]))
@example(Case(bad_words=[[], [VOCAB], [-1], [1, VOCAB + 7]]))
@example(Case(bad_words=[[token] for token in range(VOCAB)]))
@example(Case({"presence_penalty": 1.0}, answer=[3, -1], positions=[0, 1, 2, 3, 9]))
@example(Case({"repetition_penalty": 2.0}, prompt=[VOCAB + 1, -1], positions=[2]))
def test_every_request_leaves_rows_that_a_token_can_be_drawn_from(case: Case) -> None:
    """An exception on the worker, or a row of no numbers, ends the engine for all."""
    rules = LogitsRules(case.params(), len(case.prompt), VOCAB)
    logits = case.logits()
    before = logits.tolist()
    sequence = torch.tensor(case.prompt + case.answer)
    rules.apply(logits, torch.tensor(case.positions), sequence)
    assert not logits.isnan().any()
    end = len(case.prompt) + len(case.answer)
    for old, new, position in zip(before, logits, case.positions, strict=True):
        if len(case.prompt) <= position < end:
            with np.errstate(over="ignore", divide="ignore"):
                expected = torch.tensor(wanted(case, old, position)).float()
            torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-4)
    rows = len(logits)
    filters = SamplingFilters(torch.full((rows,), 0.01), None, None, None)
    token, probs = sample(logits, filters, torch.full((rows,), 0.5).double())
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(rows))
    assert (probs[torch.arange(rows), token] > 0).all() and (token != MASK).all()


def test_penalties_cost_what_the_sequence_does() -> None:
    """A table of counts of the size of the logits is 40 MB for 32 rows."""
    vocab, rows, length = 100_000, 32, 200
    params = SamplingParams(
        presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.2
    )
    random = torch.Generator().manual_seed(0)
    sequence = torch.randint(0, vocab, (length,), generator=random)
    logits = torch.randn(rows, vocab)
    with profile(profile_memory=True) as traced:
        position = torch.arange(length - rows, length)
        LogitsRules(params, 100, vocab).apply(logits, position, sequence)
    taken = sum(max(0, event.self_cpu_memory_usage) for event in traced.key_averages())
    assert 0 < taken < rows * vocab
