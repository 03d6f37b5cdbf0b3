"""Bias, bans and penalties of a request, against plain loops over its positions."""

import math
import random
from typing import Any

import pytest
import torch
from vllm.sampling_params import SamplingParams

from vllm_dllm.worker.logits import LogitsRules

VOCAB, PROMPT = 40, 5
HOLE = -1
INF = math.inf


def sampling_params(
    bad_words: list[list[int]] | None = None, **fields: Any
) -> SamplingParams:
    params = SamplingParams(max_tokens=99, **fields)
    params._bad_words_token_ids = bad_words
    return params


def rules_of(prompt_len: int = PROMPT, **fields: Any) -> LogitsRules:
    return LogitsRules(sampling_params(**fields), prompt_len, VOCAB)


def some_logits(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def applied(
    rules: LogitsRules, sequence: list[int], positions: list[int], seed: int = 0
) -> tuple[list[list[float]], list[list[float]]]:
    """Rows before and after."""
    logits = some_logits(len(positions), seed)
    before, ids = logits.tolist(), torch.tensor(sequence)
    rules.apply(logits, torch.tensor(positions), ids)
    assert ids.tolist() == sequence
    return before, logits.tolist()


def some_sequence(rng: random.Random, length: int = 17, kinds: int = 8) -> list[int]:
    """A prompt, some tokens, and a block that is decoded here and there."""
    tokens = [rng.randrange(kinds) for _ in range(length)]
    for place in range(9, length):
        if rng.random() < 0.5:
            tokens[place] = HOLE
    return tokens


CANVAS = list(range(9, 17))


def banned_of(before: list[float], after: list[float]) -> set[int]:
    """Tokens that became impossible; the others must be as they were."""
    for old, new in zip(before, after, strict=True):
        assert new in (old, -INF)
    return {token for token, logit in enumerate(after) if logit == -INF}


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({}, False),
        ({"temperature": 0.0, "top_k": 5, "stop_token_ids": [3]}, False),
        ({"logit_bias": {}, "bad_words": [], "min_tokens": 0}, False),
        ({"logit_bias": {3: 1.0}}, True),
        ({"allowed_token_ids": [3]}, True),
        ({"min_tokens": 1}, True),
        ({"presence_penalty": -0.1}, True),
        ({"frequency_penalty": 0.1}, True),
        ({"repetition_penalty": 0.9}, True),
        ({"bad_words": [[3, 4]]}, True),
    ],
)
def test_each_rule_by_itself_is_one_that_is_needed(
    fields: dict[str, Any], needed: bool
) -> None:
    """A request that is taken for a plain one is decoded without its rules."""
    assert LogitsRules.needed(sampling_params(**fields)) is needed
    if not needed:
        before, after = applied(rules_of(**fields), [1] * 17, CANVAS)
        assert after == before


def test_a_bias_is_added_to_its_tokens_alone() -> None:
    """A bias in another column promotes another token."""
    bias = {3: 2.5, 0: -4.0, VOCAB - 1: 100.0}
    before, after = applied(rules_of(logit_bias=bias), [1] * 17, CANVAS)
    for old, new in zip(before, after, strict=True):
        expected = [logit + bias.get(token, 0.0) for token, logit in enumerate(old)]
        assert new == pytest.approx(expected, abs=1e-5)


def test_only_allowed_tokens_are_left() -> None:
    """One token more, and an answer is none of those that were asked for."""
    rules = rules_of(allowed_token_ids=[3, 0, VOCAB - 1])
    for old, new in zip(*applied(rules, [1] * 17, CANVAS), strict=True):
        assert banned_of(old, new) == set(range(VOCAB)) - {0, 3, VOCAB - 1}


@pytest.mark.parametrize("min_tokens", [1, 4, 5, 9, 50])
def test_stop_tokens_wait_for_their_position(min_tokens: int) -> None:
    """A block is decoded in any order: to count tokens would allow an early end."""
    rules = rules_of(min_tokens=min_tokens, stop_token_ids=[2, 7])
    before, after = applied(rules, [1] * 9 + [HOLE] * 8, CANVAS)
    for position, old, new in zip(CANVAS, before, after, strict=True):
        early = position - PROMPT < min_tokens
        assert banned_of(old, new) == ({2, 7} if early else set())


@pytest.mark.parametrize(
    "penalties",
    [
        {"presence_penalty": 1.5},
        {"presence_penalty": -0.5},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -2.0},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.6},
        {
            "presence_penalty": 0.3,
            "frequency_penalty": 0.4,
            "repetition_penalty": 1.2,
            "logit_bias": {2: 3.0},
        },
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_penalties_count_what_is_decoded_elsewhere(
    penalties: dict[str, Any], seed: int
) -> None:
    """Counts of masks, of the prompt or of the position itself push tokens away."""
    sequence = some_sequence(random.Random(seed))
    rules = rules_of(**penalties)
    before, after = applied(rules, sequence, CANVAS, seed)
    for position, old, new in zip(CANVAS, before, after, strict=True):
        expected = list(old)
        for token, logit in enumerate(expected):
            count = sum(
                sequence[place] == token
                for place in range(PROMPT, len(sequence))
                if place != position
            )
            if token in penalties.get("logit_bias", {}):
                logit += penalties["logit_bias"][token]
            if count or token in sequence[:PROMPT]:
                factor = penalties.get("repetition_penalty", 1.0)
                logit = logit / factor if logit > 0 else logit * factor
            logit -= count * penalties.get("frequency_penalty", 0.0)
            logit -= bool(count) * penalties.get("presence_penalty", 0.0)
            expected[token] = logit
        assert new == pytest.approx(expected, abs=1e-4)


def test_penalties_leave_banned_tokens_banned() -> None:
    """-inf times a penalty must not become a number, or not a number."""
    rules = rules_of(
        repetition_penalty=1.5, presence_penalty=-2.0, frequency_penalty=-2.0
    )
    logits = some_logits(2, 0)
    logits[:, [3, 8]] = -INF
    rules.apply(logits, torch.tensor([9, 10]), torch.tensor([3, 8, 3, 3, 3] * 2 + [8]))
    assert logits[:, [3, 8]].tolist() == [[-INF, -INF]] * 2
    assert not logits.isnan().any()


def makes_bad_word(sequence: list[int], words: list[int], place: int) -> bool:
    """Whether the answer has `words` in it with one of their tokens at `place`."""
    starts = range(max(PROMPT, place - len(words) + 1), place + 1)
    return any(sequence[start : start + len(words)] == words for start in starts)


BAD_WORDS: list[list[list[int]]] = [
    [[3]],
    [[2, 3]],
    [[3, 3]],
    [[1, 2, 3]],
    [[2, 2, 2], [0, 1]],
    [[1, 2, 1, 2], [4], [3, 0, 1]],
]


@pytest.mark.parametrize("bad_words", BAD_WORDS)
@pytest.mark.parametrize("seed", range(10))
def test_whatever_completes_a_bad_word_is_banned(
    bad_words: list[list[int]], seed: int
) -> None:
    """From the right, or in the middle, a word could be completed all the same."""
    rng = random.Random(seed)
    sequence = [9] * PROMPT + some_sequence(rng, 17, kinds=4)[PROMPT:]
    before, after = applied(rules_of(bad_words=bad_words), sequence, CANVAS, seed)
    for position, old, new in zip(CANVAS, before, after, strict=True):
        expected = set()
        for token in range(VOCAB):
            tried = [*sequence[:position], token, *sequence[position + 1 :]]
            if any(makes_bad_word(tried, words, position) for words in bad_words):
                expected.add(token)
        assert banned_of(old, new) == expected


def test_a_bad_word_is_one_of_the_answer() -> None:
    """vLLM's own begins there; a token after the prompt would be missing."""
    sequence = [1] * 8 + [2] + [HOLE] * 7
    rules = LogitsRules(sampling_params(bad_words=[[2, 3], [1, 2, 3]]), 9, VOCAB)
    before, after = applied(rules, sequence, [9])
    assert banned_of(before[0], after[0]) == set()


@pytest.mark.parametrize(
    "bans",
    [{"min_tokens": 50, "stop_token_ids": [3, 7]}, {"bad_words": [[3], [7]]}],
)
def test_where_bans_leave_no_allowed_token_those_stay(bans: dict[str, Any]) -> None:
    """A row without any token has no distribution to draw from."""
    rules = rules_of(allowed_token_ids=[3, 7], **bans)
    sequence = [1] * 9 + [HOLE] * 8
    for old, new in zip(*applied(rules, sequence, CANVAS), strict=True):
        assert banned_of(old, new) == set(range(VOCAB)) - {3, 7}
    rules = rules_of(allowed_token_ids=[3, 7, 8], **bans)
    for old, new in zip(*applied(rules, sequence, CANVAS), strict=True):
        assert banned_of(old, new) == set(range(VOCAB)) - {8}


def conflicts(
    bad_words: list[list[int]], before: list[int], after: list[int], sure: list[float]
) -> list[int]:
    rules = rules_of(bad_words=bad_words)
    confidence = torch.zeros(len(before))
    confidence[-len(sure) :] = torch.tensor(sure)
    tensors = torch.tensor(before), torch.tensor(after)
    dropped = rules.conflicts(*tensors, confidence, len(before) - len(sure))
    assert [t.tolist() for t in tensors] == [before, after]
    return dropped


HEAD = [9] * PROMPT


@pytest.mark.parametrize(
    ("bad_words", "before", "after", "sure", "dropped"),
    [
        ([[1, 2]], [HOLE, HOLE], [1, 2], [0.9, 0.8], [6]),
        ([[1, 2]], [HOLE, HOLE], [1, 2], [0.8, 0.9], [5]),
        ([[1, 2]], [HOLE, HOLE], [2, 1], [0.8, 0.9], []),
        ([[1, 2]], [1, 2, HOLE], [1, 2, 5], [0.1, 0.1, 0.9], []),  # not of this step
        ([[1, 2]], [1, HOLE], [1, 2], [0.1, 0.9], []),  # there was no other token
        ([[1, 2, 3]], [HOLE, 2, HOLE], [1, 2, 3], [0.9, 0.1, 0.8], [7]),
        ([[1, 1]], [HOLE] * 3, [1, 1, 1], [0.9, 0.7, 0.8], [6]),
        ([[1, 1]], [HOLE] * 3, [1, 1, 1], [0.7, 0.8, 0.9], [5, 6]),
        ([[1, 2], [4, 5]], [HOLE] * 4, [1, 2, 4, 5], [0.9, 0.8, 0.7, 0.6], [6, 8]),
    ],
)
def test_of_a_bad_word_of_one_step_the_least_sure_token_is_taken_back(
    bad_words: list[list[int]],
    before: list[int],
    after: list[int],
    sure: list[float],
    dropped: list[int],
) -> None:
    """Each was allowed by itself; together they would be answered."""
    assert conflicts(bad_words, HEAD + before, HEAD + after, sure) == dropped


@pytest.mark.parametrize("bad_words", BAD_WORDS)
@pytest.mark.parametrize("seed", range(20))
def test_after_a_step_no_bad_word_stands_and_something_is_written(
    bad_words: list[list[int]], seed: int
) -> None:
    """A word that slips through is answered; a step without effect is repeated."""
    rng = random.Random(seed)
    before = HEAD + some_sequence(rng, 17, kinds=4)[PROMPT:]
    after, sure = list(before), [rng.random() for _ in CANVAS]
    for place in CANVAS:
        token = rng.randrange(4)
        tried = [*before[:place], token, *before[place + 1 :]]
        bad = any(makes_bad_word(tried, words, place) for words in bad_words)
        if before[place] == HOLE and not bad and rng.random() < 0.8:
            after[place] = token
    written = {place for place in CANVAS if after[place] != before[place]}
    dropped = conflicts(bad_words, before, after, sure)
    assert len(set(dropped)) == len(dropped)
    assert set(dropped) <= written
    if written:
        assert max(written, key=lambda place: sure[place - 9]) not in dropped
    kept = [before[p] if p in dropped else token for p, token in enumerate(after)]
    for place in written - set(dropped):
        assert not any(makes_bad_word(kept, words, place) for words in bad_words)


def test_a_revision_that_is_taken_back_completes_no_other_bad_word() -> None:
    """The token that was to go may make one with the others of the step."""
    before, after = [HOLE, HOLE, 1, 2], [2, 2, 2, 1]
    dropped = conflicts([[2, 2, 1]], HEAD + before, HEAD + after, [0.4, 0.3, 0.2, 0.5])
    kept = [before[i] if PROMPT + i in dropped else after[i] for i in range(4)]
    assert not any(makes_bad_word(HEAD + kept, [2, 2, 1], PROMPT + i) for i in range(4))
    assert len(set(dropped)) < 4
