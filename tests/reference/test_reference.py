"""The references against what the authors' own code answered (tests/golden).

Everything else is compared with the references, so a slip in them would be a slip in
every other test.
"""

import json
from typing import Any

import pytest
import torch
from torch import nn

from tests.golden_cases import EOS, GOLDEN, MASK, golden_cases, reference_model
from tests.reference import adablock_generate, dream_generate, llada_generate
from tests.reference.dream import Dream
from tests.reference.kv_cache import Cache
from tests.reference.llada import LLaDA

PROMPT = list(range(40, 57))


@pytest.mark.parametrize(
    ("checkpoint", "block_length", "count"),
    [
        ("sdar-pub0", 4, 32),
        ("sdar-pub1", 16, 32),
        ("llada20-pub0", 8, 15),
        ("llada20-pub0", 32, 15),
        ("llada22-pub0", 32, 27),
        ("llada22-pub1", 8, 25),
        ("wedlm-pub0", None, 36),
    ],
)
def test_tokens_and_forwards_are_those_of_the_authors_code(
    checkpoint: str, block_length: int | None, count: int
) -> None:
    """A wrong reference would bless a wrong engine."""
    cases = golden_cases(checkpoint, block_length)
    assert len(cases) == count
    assert [case.answered() for case in cases] == cases


def test_fast_dllm_v2_answers_as_the_authors_code() -> None:
    """Theirs finishes a last block, past the end of the answer."""
    cases = golden_cases("fastdllm2-pub0")
    assert len(cases) == 32
    answered = [case.answered() for case in cases]
    assert [case.tokens for case in answered] == [case.tokens for case in cases]
    for case, ours in zip(cases, answered, strict=True):
        assert ours.nfe <= case.nfe if case.tokens[-1] != EOS else ours.nfe == case.nfe


def test_nemotron_answers_as_the_authors_code() -> None:
    """Theirs finishes a last block, and its drafts are forwards too."""
    cases = golden_cases("nemotron-pub0")
    assert {case.algorithm for case in cases} == {"threshold", "quota", "linear_spec"}
    answered = [case.answered() for case in cases]
    assert [case.tokens for case in answered] == [case.tokens for case in cases]
    for case, ours in zip(cases, answered, strict=True):
        assert ours.nfe <= case.nfe


@pytest.fixture(scope="module")
def llada() -> LLaDA:
    return LLaDA.from_pretrained(GOLDEN / "llada-pub0")


@pytest.fixture(scope="module")
def dream() -> Dream:
    return Dream.from_pretrained(GOLDEN / "dream-pub0")


def lines(checkpoint: str) -> list[dict[str, Any]]:
    text = (GOLDEN / checkpoint / "cases.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def arguments(case: dict[str, Any], *names: str) -> dict[str, Any]:
    """The named fields of a golden case, as far as it has them."""
    return {name: case[name] for name in names if name in case} | {"mask_id": MASK}


def test_llada_and_fast_dllm_answer_as_the_authors_code(llada: LLaDA) -> None:
    """Every cache, by quota and by threshold."""
    cases = lines("llada-pub0")
    assert {case["cache"] for case in cases} == set(llada_generate.CACHES)
    names = ("prompt", "gen_length", "block_length", "steps", "threshold", "cache")
    answers = [
        llada_generate.generate(llada, **arguments(case, *names)) for case in cases
    ]
    assert answers == [(case["tokens"], case["nfe"]) for case in cases]


def test_dream_answers_as_the_authors_code(dream: Dream) -> None:
    """Every measure of confidence; the steps' sizes come from rounded float32."""
    cases = lines("dream-pub0")
    assert {case["algorithm"] for case in cases} == set(dream_generate.ALGORITHMS)
    names = ("prompt", "gen_length", "algorithm", "steps", "eps")
    answers = [
        dream_generate.generate(dream, **arguments(case, *names)) for case in cases
    ]
    assert answers == [(case["tokens"], case["nfe"]) for case in cases]


@pytest.mark.parametrize("name", ["adablock-llada-pub0", "adablock-dream-pub0"])
def test_adablock_answers_as_the_authors_code(name: str) -> None:
    """Tokens, forwards, and where each block ends."""
    model = reference_model(name)
    names = ("prompt", "gen_length", "block_length", "threshold", "cache")
    names += ("delimiter_ids", "delimiter_threshold")
    for case in lines(name):
        answer = adablock_generate.generate(model, **arguments(case, *names))
        assert answer == (case["tokens"], case["nfe"], case["blocks"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_a_span_over_a_fresh_cache_sees_what_a_full_forward_sees(
    request: pytest.FixtureRequest, name: str
) -> None:
    """Rotations and rows of a cache are counted from a span's first position."""
    model: nn.Module = request.getfixturevalue(name)
    ids = torch.tensor(PROMPT)
    cache = Cache(3, len(ids))
    full = model(ids, 0, cache)
    torch.testing.assert_close(full, model(ids))
    # Four rows are multiplied in another order than all of them.
    span = model(ids[5:9], 5, cache)
    torch.testing.assert_close(span, full[5:9], rtol=1e-3, atol=1e-4)
    # The whole is seen from a span, and so are changes elsewhere.
    model(ids[:5].flip(0), 0, cache)
    changed = torch.cat((ids[:5].flip(0), ids[5:]))
    assert not torch.equal(model(ids[5:9], 5, cache), full[5:9])
    assert not torch.equal(model(changed)[5:9], full[5:9])


def test_the_last_block_does_not_tell_prefix_from_dual(
    llada: LLaDA, dream: Dream
) -> None:
    """Right of it there is nothing that one feeds and the other does not."""
    ways = [
        (llada_generate.generate, llada, {"threshold": 0.35}),
        (llada_generate.generate, llada, {"steps": 8}),
        (dream_generate.generate_blockwise, dream, {"threshold": 0.35}),
        (dream_generate.generate_blockwise, dream, {"algorithm": "entropy"}),
    ]
    for generate, model, choice in ways:
        one, several = (
            [
                generate(model, PROMPT, 32, size, mask_id=MASK, cache=cache, **choice)
                for cache in ("prefix", "dual")
            ]
            for size in (32, 8)
        )
        assert one[0] == one[1]
        assert several[0] != several[1]


def test_guidance_of_no_strength_changes_the_forwards_alone(llada: LLaDA) -> None:
    """The branch without the prompt has a canvas and a cache of its own."""
    for cache in llada_generate.CACHES:
        plain, guided = (
            llada_generate.generate(
                llada, PROMPT, 16, 8, mask_id=MASK, cache=cache, cfg_scale=scale
            )
            for scale in (0.0, 1e-9)
        )
        assert guided == (plain[0], 2 * plain[1])


def test_an_answer_is_cut_from_a_canvas_of_whole_blocks(llada: LLaDA) -> None:
    """The authors ask for lengths that divide; a server cannot."""
    tokens, forwards = llada_generate.generate(llada, PROMPT, 24, 8, mask_id=MASK)
    cut = llada_generate.generate(llada, PROMPT, 18, 8, mask_id=MASK)
    assert cut == (tokens[:18], forwards)


@pytest.mark.parametrize(
    ("surest", "accepted"),
    [
        ([0.1], 1),
        ([0.9, 0.5], 2),  # the last one fails, and is taken along
        ([0.9, 0.7, 0.7, 0.7], 2),
        ([0.9, 0.5, 0.5], 1),
        ([0.9, 0.9, 0.9], 3),
    ],
)
def test_factor_counts_as_fast_dllm(surest: list[float], accepted: int) -> None:
    """Its scan has an off-by-one that published numbers have, too."""
    assert llada_generate.accept_by_factor(surest, 1.0) == accepted
