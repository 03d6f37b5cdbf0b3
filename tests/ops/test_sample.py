"""A drawn token: filters as in a plain re-implementation, draws as the number says."""

import math
from dataclasses import dataclass

import pytest
import torch
from vllm.sampling_params import SamplingParams

from tests.decodings import decoding
from vllm_dllm.config import Facts
from vllm_dllm.ops.sample import SamplingFilters, sample
from vllm_dllm.worker.sampling import Sampling

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAST = 1 - 2**-48
"""The highest number that noise gives."""


@dataclass
class Row:
    """One request's filters; the defaults switch them off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def draw(
    logits: torch.Tensor, filters: list[Row], uniform: list[float]
) -> tuple[list[int], torch.Tensor]:
    """Tokens and distributions; filters as the worker stores those of requests."""
    stored = Sampling(len(filters), logits.shape[1], DEVICE, Facts())
    for slot, row in enumerate(filters):
        params = SamplingParams(top_k=row.top_k, top_p=row.top_p, min_p=row.min_p)
        stored.add_request(str(slot), slot, params, 1, decoding())
    temperature = torch.tensor([row.temperature for row in filters], device=DEVICE)
    stacked = SamplingFilters(temperature, stored.top_k, stored.top_p, stored.min_p)
    numbers = torch.tensor(uniform, dtype=torch.float64, device=DEVICE)
    token, probs = sample(logits.to(DEVICE, copy=True), stacked, numbers)
    assert token.dtype == torch.int64
    return token.tolist(), probs.cpu()


def distribution(logits: list[float], row: Row) -> tuple[list[float], float]:
    """In Python's floats; and how near a token was to being filtered otherwise."""
    best = max(logits)
    weights = [math.exp((x - best) / row.temperature) for x in logits]
    clear = math.inf

    def keep(token: int, share: float, limit: float) -> None:
        nonlocal clear
        clear = min(clear, abs(share - limit))
        if share < limit:
            weights[token] = 0.0

    if row.min_p:
        for token, weight in enumerate(list(weights)):
            keep(token, weight, row.min_p)
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    if row.top_k:
        for token in order[row.top_k :]:
            weights[token] = 0.0
    if row.top_p < 1:
        total, before = sum(weights), 0.0
        for token in order:
            weight = weights[token]
            if weight:
                keep(token, 1 - before / total, 1 - row.top_p)
            before += weight
    total = sum(weights)
    return [weight / total for weight in weights], clear


ROWS = [
    Row(),
    Row(temperature=0.3),
    Row(temperature=2.5),
    Row(top_k=1),
    Row(top_k=7),
    Row(top_k=10_000),
    Row(top_p=0.1),
    Row(top_p=0.9),
    Row(top_p=1e-6),
    Row(min_p=0.05),
    Row(min_p=1.0),
    Row(temperature=0.7, top_k=20, top_p=0.8),
    Row(temperature=1.3, min_p=0.02, top_p=0.7),
    Row(temperature=1.3, min_p=0.02, top_k=5),
    Row(temperature=0.9, min_p=0.01, top_k=30, top_p=0.95),
]


def normal(number: int, vocab: int, seed: int) -> torch.Tensor:
    return torch.randn(number, vocab, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("vocab", [2, 11, 300, 5003])
@pytest.mark.parametrize("together", [True, False])
def test_the_distribution_is_that_of_the_filters(vocab: int, together: bool) -> None:
    """Another order of the filters keeps other tokens, and changes confidences."""
    compared = 0
    for seed in range(4):
        logits = normal(len(ROWS), vocab, seed)
        if seed == 3:
            logits[:, :: max(2, vocab // 5)] = -math.inf
        middle = [0.5] * len(ROWS)
        if together:
            _, probs = draw(logits, ROWS, middle)
        else:
            parts = [
                draw(logits[i : i + 1], [row], [0.5])[1] for i, row in enumerate(ROWS)
            ]
            probs = torch.cat(parts)
        for row, found, values in zip(ROWS, probs, logits.tolist(), strict=True):
            expected, clear = distribution(values, row)
            if clear < 1e-5 and row.min_p < 1:
                continue  # float32 may see the token on the other side of the limit
            compared += 1
            torch.testing.assert_close(
                found.double(),
                torch.tensor(expected).double(),
                rtol=1e-4,
                atol=1e-7,
            )
            assert ((found == 0) == (torch.tensor(expected) < 1e-38)).all()
    assert compared > 3 * len(ROWS)


def test_the_number_inverts_the_distribution_function() -> None:
    """Draws that follow another distribution than `probs` make confidence a lie."""
    logits = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.4]]).log()
    borders = {0: (0.0, 0.1), 1: (0.1, 0.3), 3: (0.3, 0.6), 4: (0.6, 1.0)}
    for token, (low, high) in borders.items():
        inside = [low + 1e-6, (low + high) / 2, high - 1e-6]
        tokens, _ = draw(logits.repeat(3, 1), [Row()] * 3, inside)
        assert tokens == [token] * 3


@pytest.mark.parametrize("vocab", [10, 5003])
def test_frequencies_are_the_probabilities(vocab: int) -> None:
    """Evenly spread numbers must hit every token as often as its probability says."""
    number, row = 512, Row(temperature=0.5, top_k=8)
    logits = normal(1, vocab, 1)
    uniform = [(i + 0.5) / number for i in range(number)]
    tokens, probs = draw(logits.repeat(number, 1), [row] * number, uniform)
    for token, share in enumerate(probs[0].tolist()):
        assert abs(tokens.count(token) - share * number) <= 1


@pytest.mark.parametrize("temperature", [0.01, 1e-3, 1e-5, 0.0])
def test_temperature_towards_0_is_the_most_likely_token(temperature: float) -> None:
    """A greedy request would be answered by chance."""
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    logits = (order * 0.5).float().repeat(5, 1)
    uniform = [0.0, 1e-9, 0.5, 0.999, LAST]
    tokens, probs = draw(logits, [Row(temperature=temperature)] * 5, uniform)
    assert tokens == [int(order.argmax())] * 5
    assert torch.isfinite(probs).all()
    if temperature:
        assert probs.amax(dim=1).tolist() == [1.0] * 5


def test_greedy_rows_take_the_lowest_id_of_equals_whatever_the_number() -> None:
    """A request at temperature 0 would change with its seed."""
    logits = torch.zeros(3, 50)
    logits[:, [7, 9, 30]] = 2.0
    tokens, probs = draw(logits, [Row(temperature=0)] * 3, [0.0, 0.7, LAST])
    assert tokens == [7, 7, 7]
    expected = logits.double().softmax(dim=1)
    torch.testing.assert_close(probs.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("vocab", [5, 64, 40000])
@pytest.mark.parametrize("row", [Row(), Row(top_k=3), Row(top_p=0.5), Row(min_p=0.3)])
def test_a_token_without_probability_is_never_drawn(vocab: int, row: Row) -> None:
    """The mask is banned so; drawn, it would be decoded for ever."""
    numbers = [0.0, 2**-48, 0.25, 0.5, 1 - 2**-20, LAST]
    for banned in ([0], [vocab - 1], [0, 1, vocab - 2, vocab - 1]):
        logits = normal(len(numbers), vocab, vocab)
        logits[:, banned] = -math.inf
        tokens, probs = draw(logits, [row] * len(numbers), numbers)
        for token, found in zip(tokens, probs, strict=True):
            assert found[token] > 0
            assert token not in banned
        assert probs.sum(dim=1).tolist() == pytest.approx([1] * len(numbers))
    one = torch.full((2, vocab), -math.inf)
    one[:, vocab // 2] = -3.0
    tokens, probs = draw(one, [row] * 2, [0.0, LAST])
    assert tokens == [vocab // 2] * 2
    assert probs[:, vocab // 2].tolist() == [1.0, 1.0]


def test_the_ends_of_the_numbers_are_the_first_and_the_last_token() -> None:
    """The last token of a large vocabulary would be lost to rounding."""
    for vocab in (2, 1000, 40000):
        tokens, _ = draw(torch.zeros(2, vocab), [Row()] * 2, [0.0, LAST])
        assert tokens == [0, vocab - 1]


def test_unlikely_tokens_keep_their_share() -> None:
    """In float32 what follows a likely token adds nothing to the sum."""
    logits = torch.tensor([[0.0, -18.0, -18.0, -18.0]]).repeat(4, 1)
    share = math.exp(-18) / (1 + 3 * math.exp(-18))
    uniform = [1 - 3.5 * share, 1 - 2.5 * share, 1 - 1.5 * share, 1 - 0.5 * share]
    tokens, _ = draw(logits, [Row()] * 4, uniform)
    assert tokens == [0, 1, 2, 3]


def test_a_rows_draw_does_not_depend_on_other_rows() -> None:
    """A seeded request would be answered otherwise in company."""
    filters = [*ROWS, Row(temperature=0)]
    uniform = [(i * 0.37 + 0.11) % 1 for i in range(len(filters))]
    logits = normal(len(filters), 400, 5)
    tokens, probs = draw(logits, filters, uniform)
    backwards, _ = draw(logits.flip(0), filters[::-1], uniform[::-1])
    assert backwards[::-1] == tokens
    for index, row in enumerate(filters):
        alone, found = draw(logits[index : index + 1], [row], [uniform[index]])
        assert alone == [tokens[index]]
        assert torch.equal(found[0], probs[index])
