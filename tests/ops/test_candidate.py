"""The best token of a row and its measures: all implementations and float64 agree."""

import math
import os
from collections.abc import Callable

import pytest
import torch

from vllm_dllm.ops import extension
from vllm_dllm.ops.candidate import (
    Candidates,
    candidates,
    candidates_torch,
    entropy,
    margin,
)

Implementation = Callable[..., Candidates]
BUILT = extension.load() is not None
native = pytest.param(
    candidates,
    id="native",
    marks=pytest.mark.skipif(not BUILT, reason="not built"),
)
GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def by_triton(
    logits: torch.Tensor, mask_token_id: int, measures: bool = False
) -> Candidates:
    """On a GPU, or on CPU in Triton's interpreter (test_candidate_triton.py)."""
    from vllm_dllm.ops import candidate_triton

    if GPU:  # a slice of a tensor must stay one
        whole = logits if logits._base is None else logits._base
        offset = logits.storage_offset()
        logits = whole.cuda().as_strided(logits.shape, logits.stride(), offset)
    token, found = candidate_triton.candidates(logits, mask_token_id, measures)
    return Candidates(token.cpu(), *found.cpu())


implementations = [native, pytest.param(candidates_torch, id="torch")]
if GPU or INTERPRETED:
    implementations.append(pytest.param(by_triton, id="triton"))
every = pytest.mark.parametrize("implementation", implementations)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
INF = math.inf


def rows(number: int, vocab: int, seed: int = 0, scale: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, vocab, generator=generator) * scale


def expected(logits: torch.Tensor, mask: int) -> tuple[list[int], torch.Tensor]:
    """Lowest id of the highest logits, and its probability, in float64."""
    logits = logits.double()
    logits[:, mask] = -INF
    probs = logits.softmax(dim=1)
    tokens = [row.index(max(row)) for row in logits.tolist()]
    return tokens, probs[torch.arange(len(tokens)), torch.tensor(tokens)]


def check(implementation: Implementation, logits: torch.Tensor, mask: int) -> None:
    tokens, confidence = expected(logits.clone(), mask)
    found = implementation(logits, mask)
    assert found.token.dtype == torch.int64
    assert found.confidence.dtype == torch.float32
    assert found.token.tolist() == tokens
    torch.testing.assert_close(found.confidence.double(), confidence, rtol=2e-5, atol=0)


@every
@every_dtype
@pytest.mark.parametrize("vocab", [2, 3, 7, 17, 255, 1023, 1024, 1025, 4099, 40000])
def test_every_size_of_vocabulary_is_read_to_its_end(
    implementation: Implementation, dtype: torch.dtype, vocab: int
) -> None:
    """Vectors and blocks leave a rest, whose tokens would never be chosen."""
    for mask in {0, vocab // 2, vocab - 1}:
        check(implementation, rows(9, vocab, seed=mask).to(dtype), mask)
    last_is_best = torch.zeros(1, vocab, dtype=dtype)
    last_is_best[0, -1] = 3
    check(implementation, last_is_best, 0)


@every
@every_dtype
def test_the_mask_is_never_chosen_and_has_no_probability(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    """A position that becomes a mask is decoded for ever."""
    for mask in (0, 1, 1023, 1024, 2000, 2999):
        logits = rows(4, 3000).to(dtype)
        without = logits.clone()
        without[:, mask] = -INF
        logits[:, mask] = 60.0
        tokens, confidence = expected(without, mask)
        found = implementation(logits, mask)
        assert found.token.tolist() == tokens
        torch.testing.assert_close(
            found.confidence.double(), confidence, rtol=2e-5, atol=0
        )


@every
@every_dtype
def test_of_equals_the_lowest_id_is_chosen(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    """Ranks, builds and batches would answer differently."""
    for places in ([0, 1], [5, 6, 7], [1023, 1024], [2, 1500, 2999], [2998, 2999]):
        logits = rows(3, 3000, scale=0.5).to(dtype).clamp(max=8)
        logits[:, places] = 9.0
        found = implementation(logits.clone(), mask_token_id=2000)
        assert found.token.tolist() == [places[0]] * 3
        found = implementation(logits, mask_token_id=places[0])
        assert found.token.tolist() == [places[1]] * 3
    level = torch.zeros(2, 3000, dtype=dtype)
    found = implementation(level, 0)
    assert found.token.tolist() == [1, 1]
    assert found.confidence.tolist() == pytest.approx([1 / 2999] * 2, rel=1e-5)


@every
@every_dtype
def test_banned_stretches_of_a_row_are_passed_over(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    """-inf less -inf is not a number, and would be the confidence."""
    for banned in (slice(0, 1024), slice(0, 2999), slice(1, 3000), slice(1024, 2048)):
        logits = rows(4, 3000).to(dtype)
        logits[:, banned] = -INF
        check(implementation, logits, mask=1500)
    one = torch.full((1, 3000), -INF, dtype=dtype)
    one[0, 2500] = -7.0
    found = implementation(one, 3)
    assert (found.token.item(), found.confidence.item()) == (2500, 1.0)


@every
@every_dtype
def test_rows_may_lie_apart(implementation: Implementation, dtype: torch.dtype) -> None:
    """Under tensor parallelism the vocabulary is padded, and its end is cut off."""
    padded = rows(6, 1100).to(dtype)
    padded[:, 1001:] = 80.0
    check(implementation, padded[:, :1001], mask=4)
    check(implementation, padded[::2, :1001], mask=4)
    check(implementation, padded[1:, 3:1001], mask=0)


@every
@every_dtype
def test_other_logits_are_left_alone(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    """Sampling and logprobs read the same tensor afterwards."""
    logits = rows(3, 500).to(dtype)
    before = logits.clone()
    implementation(logits, 7)
    before[:, 7] = logits[:, 7]
    assert torch.equal(logits, before)


@every
def test_sure_rows_and_wide_ranges_keep_their_confidence(
    implementation: Implementation,
) -> None:
    """A sum that overflows, or loses its small terms, gives 0, 1 or no number."""
    sure = torch.full((1, 5000), -1e4)
    sure[0, 77] = 1e4
    assert implementation(sure, 1).confidence.item() == 1.0
    for offset in (-100, 100):
        check(implementation, rows(3, 5000) * 2 + offset, mask=9)
    rising = torch.linspace(-90, 0, 40000).repeat(2, 1)
    check(implementation, rising, mask=9)
    check(implementation, rising.flip(1).contiguous(), mask=9)


def found_parts(found: Candidates) -> dict[str, torch.Tensor]:
    """Those that a kernel finds."""
    return {k: v for k, v in vars(found).items() if isinstance(v, torch.Tensor)}


@every
def test_a_row_is_answered_as_if_it_were_alone(implementation: Implementation) -> None:
    """Threads that share a row's work would add it up in another order."""
    logits = rows(40, 20011)
    found = implementation(logits.clone(), 5, True)
    for index in (0, 1, 17, 39):
        alone = implementation(logits[index : index + 1].clone(), 5, True)
        for name, part in found_parts(alone).items():
            assert torch.equal(part, getattr(found, name)[index : index + 1]), name


@every
def test_no_rows_are_no_candidates(implementation: Implementation) -> None:
    """A step of prefills alone has no logits at all."""
    found = implementation(torch.empty(0, 300), 5, True)
    assert all(part.shape == (0,) for part in found_parts(found).values())


@every
@every_dtype
@pytest.mark.parametrize("vocab", [2, 3, 7, 257, 4095, 4096, 4097, 40000])
def test_measures_are_those_of_the_whole_distribution(
    implementation: Implementation, dtype: torch.dtype, vocab: int
) -> None:
    """Parts of a row are summed apart, and have other best and second-best tokens."""
    for seed, mask in enumerate((0, vocab // 2, vocab - 1)):
        logits = rows(7, vocab, seed, scale=3).to(dtype)
        if vocab > 3:
            logits[0, 1 :: vocab // 3] = 12.0  # equals, in several parts
            logits[1, : vocab // 2] = -INF
            logits[2] = -INF
            logits[2, vocab - 1 - (mask == vocab - 1)] = -3.0
            logits[3, vocab // 3] = 40.0
        plain = implementation(logits.clone(), mask)
        found = implementation(logits.clone(), mask, True)
        assert torch.equal(found.token, plain.token)
        assert torch.equal(found.confidence, plain.confidence)
        assert plain.entropy is None and plain.margin is None
        assert found.entropy is not None and found.margin is not None
        wide = logits.double()
        wide[:, mask] = -INF
        probs = wide.softmax(dim=1)
        top = probs.topk(2, dim=1).values
        expected = torch.special.entr(probs).sum(dim=1)
        close = torch.testing.assert_close
        close(found.entropy.double(), expected, rtol=1e-4, atol=1e-6)
        close(found.margin.double(), top[:, 0] - top[:, 1], rtol=1e-4, atol=1e-6)
        assert (found.entropy >= 0).all() and (found.margin >= 0).all()


DISTRIBUTIONS: list[list[float]] = [
    [1.0, 0.0, 0.0, 0.0],
    [0.25, 0.25, 0.25, 0.25],
    [0.5, 0.5, 0.0, 0.0],
    [0.1, 0.2, 0.3, 0.4],
    [0.0, 1e-30, 0.0, 1.0],
]


def test_entropy_is_that_of_the_textbook() -> None:
    """0 log 0 is no number, and a row with a banned token would have no entropy."""
    found = entropy(torch.tensor(DISTRIBUTIONS))
    for value, probs in zip(found.tolist(), DISTRIBUTIONS, strict=True):
        textbook = -sum(p * math.log(p) for p in probs if p > 0)
        assert value == pytest.approx(textbook, rel=1e-5, abs=1e-7)
    wide = rows(5, 40000).softmax(dim=1)
    reference = torch.special.entr(wide.double()).sum(dim=1)
    torch.testing.assert_close(entropy(wide).double(), reference, rtol=1e-4, atol=0)


def test_margin_is_best_less_second_best() -> None:
    """Equals have no lead; the lead over the third is another measure."""
    found = margin(torch.tensor(DISTRIBUTIONS)).tolist()
    assert found == pytest.approx([1.0, 0.0, 0.0, 0.1, 1.0])
    wide = rows(5, 4001).softmax(dim=1)
    for value, row in zip(margin(wide).tolist(), wide.tolist(), strict=True):
        second, best = sorted(row)[-2:]
        assert value == pytest.approx(best - second)
    assert margin(torch.ones(2, 1)).tolist() == [1.0, 1.0]
