"""Requests with full attention, and what engines answer to them."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tests.engines import Engine, Request, tokens_of
from tests.golden_cases import MASK, Case, differences, too_many_forwards

BOTH = ("llada", "dream")
CACHES = ("none", "prefix", "dual")


def case_of(
    engine: Engine,
    prompt_len: int,
    gen_length: int,
    block_length: int | None,
    algorithm: str = "low_confidence",
    **fields: Any,
) -> Case:
    """A request with a random prompt, a function of its length."""
    rng = random.Random(prompt_len)
    prompt = [rng.randrange(2, MASK) for _ in range(prompt_len)]
    checkpoint = engine.spec.checkpoint
    return Case(checkpoint, prompt, gen_length, block_length, algorithm, **fields)


def dream_case(
    engine: Engine,
    prompt_len: int,
    gen_length: int,
    block_length: int,
    algorithm: str = "maskgit_plus",
    **fields: Any,
) -> Case:
    """The same for Dream, whose reference has no blocks without a cache."""
    if fields["cache"] == "none":
        fields.setdefault("steps", gen_length)
    block = None if fields["cache"] == "none" else block_length
    return case_of(engine, prompt_len, gen_length, block, algorithm, **fields)


def failures(engine: Engine, cases: list[Case]) -> list[str]:
    """What one batch and some requests alone answer other than the reference."""
    cases = [case.answered() for case in cases]
    outputs = engine.ask(cases)
    outputs += [engine.ask([case])[0] for case in cases[::3]]
    cases += cases[::3]
    different = differences(cases, [tokens_of(output) for output in outputs])
    return different + too_many_forwards(cases, list(map(engine.forwards, outputs)))


def answers_of(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    return [tokens_of(output) for output in engine.ask_each(requests)]


def guided_cases(engine: Engine) -> list[Case]:
    """With and without guidance; some sequences end where a page does."""
    make = case_of if engine.spec.checkpoint == "llada-pub0" else dream_case
    rule = "low_confidence" if make is case_of else "maskgit_plus"
    cases = [
        make(engine, length, gen, 8, rule, steps=gen // 2, cache=cache, cfg_scale=scale)
        for length, gen in ((3, 13), (40, 24), (33, 24), (63, 33))
        for cache in CACHES
        for scale in (0.5, 1.5)
    ]
    return cases + [replace(case, cfg_scale=0.0) for case in cases[::2]]


def infilling_cases(engine: Engine) -> list[Case]:
    """With and without a suffix; gaps and suffixes end inside blocks and pages, or with
    them."""
    make: Callable[..., Case] = case_of
    rules: list[dict[str, Any]] = [
        {"algorithm": "low_confidence"},
        {"algorithm": "threshold", "threshold": 0.2},
    ]
    if engine.spec.checkpoint == "dream-pub0":
        make, rules = dream_case, [{}, {"algorithm": "entropy"}]
    cases = []
    for number, (prompt, gap, suffix, block) in enumerate(
        ((1, 1, 1, 4), (9, 13, 5, 4), (30, 20, 14, 8), (40, 24, 64, 8), (33, 7, 90, 16))
    ):
        rng = random.Random(number)
        tokens = [rng.randrange(2, MASK) for _ in range(suffix)]
        for index, cache in enumerate(CACHES):
            fields = rules[(number + index) % 2]
            case = make(engine, prompt, gap, block, cache=cache, **fields)
            cases += [
                replace(case, suffix=tokens),
                replace(case, suffix=tokens, cfg_scale=0.5),
                case,
            ]
    return cases


def gap_cases(engine: Engine) -> list[Case]:
    """Several gaps between given tokens; they begin, end and lie inside blocks, some of
    which have no mask, and pages."""
    make: Callable[..., Case] = case_of
    rules: list[dict[str, Any]] = [
        {"algorithm": "low_confidence", "steps": 12},
        {"algorithm": "threshold", "threshold": 0.2},
    ]
    if engine.spec.checkpoint == "dream-pub0":
        make, rules = dream_case, [{"steps": 20}, {"algorithm": "entropy", "steps": 30}]
    cases = []
    for number, (prompt, pieces, block) in enumerate(
        (
            (1, [1, 1, 1], 4),
            (9, [3, 2, 5, 1, 1, 4], 4),
            (30, [7, 17, 6, 3], 8),
            (40, [2, 1, 2, 1, 2, 30], 8),
            (33, [16, 16, 16, 70], 16),
        )
    ):
        rng = random.Random(number)
        canvas: list[int] = []
        for index, length in enumerate(pieces):
            canvas += [rng.randrange(2, MASK) if index % 2 else -1] * length
        gaps = len(canvas) - (pieces[-1] if len(pieces) % 2 == 0 else 0)
        for index, cache in enumerate(CACHES):
            fields = rules[(number + index) % 2]
            case = make(engine, prompt, gaps, block, cache=cache, **fields)
            cases += [
                replace(case, canvas=canvas),
                replace(case, canvas=canvas, cfg_scale=0.5),
                case,
            ]
    return cases
