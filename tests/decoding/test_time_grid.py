"""Dream's rules against `diffusion_generate`, written with loops; draws by counting."""

from collections import Counter
from itertools import combinations, permutations
from math import exp, isnan, prod, sqrt

import pytest
import torch

from tests.decoding.canvas_steps import (
    BATCHES,
    NAN,
    Row,
    as_step,
    random_batch,
    uniform_row,
    written,
)
from tests.decoding.times import share_by_hand
from tests.reference.dream_generate import tokens_of_step
from vllm_dllm.decoding.base import CanvasStep, DecodingRule
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.decoding.time_grid import time_grid

SCORES = ("maskgit_plus", "topk_margin", "neg_entropy")
MORE_BATCHES = [*BATCHES, *map(random_batch, range(len(BATCHES), 1000))]
"""Few rows are in a step that takes some of their masks, and by lot."""
TINY = torch.finfo(torch.float32).tiny
of_each_score = pytest.mark.parametrize("name", SCORES)


def score_of(name: str, row: Row) -> list[float]:
    if name == "topk_margin":
        return row.margin
    return row.confidence if name == "maskgit_plus" else [-e for e in row.entropy]


def count_of(row: Row) -> int:
    """`int(m * (1 - s / t))` of tensors without dimensions, all in the last step."""
    times = torch.linspace(1, row.eps, row.steps + 1)
    return tokens_of_step(len(row.masks), times, row.step)


def by_hand(name: str, row: Row) -> set[int]:
    score = score_of(name, row)
    if row.alg_temp > 0:
        lots = [torch.tensor(u).clamp(min=TINY) for u in row.noise]
        gumbel = [-(-lot.log()).log() for lot in lots]
        heat = torch.tensor(row.alg_temp)
        score = [
            float(torch.tensor(value) / heat + luck)
            for value, luck in zip(score, gumbel, strict=True)
        ]
    return set(row.highest_first(score)[: count_of(row)])


@of_each_score
def test_the_highest_scores_fill_the_share_of_the_step(name: str) -> None:
    """Another choice decodes other tokens than the authors' code."""
    rule = get_rule(name)
    for batch in MORE_BATCHES:
        assert written(rule, *batch) == [by_hand(name, row) for row in batch]


@of_each_score
def test_the_rule_is_no_other_one_by_another_name(name: str) -> None:
    """Scores that all agree would hide that a rule reads the wrong one."""
    row = uniform_row(
        [0.9, 0.5, 0.4, 0.3], steps=2, margin=[0.1, 0.8, 0.2, 0.0], entropy=[2, 3, 1, 4]
    )
    row.noise = [0.9, 0.8, 0.7, 0.99]
    expected = {"maskgit_plus": {0}, "topk_margin": {1}, "neg_entropy": {2}}
    assert written(get_rule(name), row) == [expected[name]]


def counts(rule: DecodingRule, masks: list[int], time: torch.Tensor) -> torch.Tensor:
    """[len(time), len(masks)]: how many a rule takes of so many masks at each time."""
    width = max(masks)
    masked = torch.arange(width) < torch.tensor(masks).unsqueeze(1)
    masked = masked.repeat(len(time), 1)
    rows = len(masked)
    measure = torch.rand(rows, width, generator=torch.Generator().manual_seed(0))
    step = CanvasStep(
        tokens=masked.long(),
        masked=masked,
        editable=torch.zeros_like(masked),
        length=masked.sum(dim=1),
        step=torch.zeros(rows).long(),
        post_steps=torch.zeros(rows).long(),
        candidate=masked.long(),
        confidence=measure,
        entropy=measure,
        margin=measure,
        noise=measure,
        time=time.repeat_interleave(len(masks)),
        params={"alg_temp": torch.zeros(rows)},
    )
    return rule.decide(step).write.sum(dim=1).view(len(time), len(masks))


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16, 50, 128, 300])
def test_the_number_of_tokens_is_the_authors_at_every_step(
    steps: int, eps: float
) -> None:
    """In float64, or with another order of operations, 1 token becomes 0."""
    masks = [*range(1, 33), 63, 64, 100, 128]
    found = counts(get_rule("maskgit_plus"), masks, time_grid(steps, eps))
    times = torch.linspace(1, eps, steps + 1)
    assert found.tolist() == [
        [tokens_of_step(mask, times, step) for mask in masks] for step in range(steps)
    ]


@pytest.mark.parametrize("steps", [1, 2, 5, 16, 33])
def test_a_block_is_decoded_in_its_steps(steps: int) -> None:
    """What is left after the last step would stay masked."""
    left, rule = 16, get_rule("neg_entropy")
    for step in range(steps):
        assert left
        row = Row([True] * left, [NAN] * left, step=step, steps=steps)
        row.entropy, row.noise = [1.0] * left, [0.5] * left
        (taken,) = written(rule, row)
        assert len(taken) == count_of(row)
        left -= len(taken)
    assert left == 0


@of_each_score
def test_a_step_may_take_none_and_the_last_takes_all(name: str) -> None:
    """One token at least in each step, as other rules have it, is another schedule."""
    measure = [0.5, 0.25, 0.75]
    row = uniform_row(measure, margin=measure, entropy=measure, noise=measure)
    row.steps = 100
    assert written(get_rule(name), row) == [set()]
    row.step = 99
    assert written(get_rule(name), row) == [{0, 1, 2}]


@of_each_score
@pytest.mark.parametrize("alg_temp", [1e-39, 1e-30, 1e300])
def test_at_any_temperature_nothing_but_masks_is_taken(
    name: str, alg_temp: float
) -> None:
    """A score that overflows is no worse than that of a decoded position."""
    row = Row([False, False, True, True], [NAN, NAN, 0.9, 0.8], steps=2)
    row.margin, row.entropy = row.confidence, [NAN, NAN, 4.0, 5.0]
    row.noise, row.alg_temp = [0.5] * 4, alg_temp
    row.step = 1
    assert written(get_rule(name), row) == [{2, 3}]


DRAWS = 5_000
CHANCES = [0.9, 0.6, 0.5, 0.2]


def draws(rule: DecodingRule, row: Row, time: float) -> Counter[tuple[int, ...]]:
    """How often each set of columns is taken, with new noise in each of `DRAWS`."""
    step = as_step([row], rule).take(torch.zeros(DRAWS).long())
    step.params = {
        name: torch.full((DRAWS,), getattr(row, name)) for name in rule.parameters
    }
    generator = torch.Generator().manual_seed(7)
    step.noise = torch.rand(DRAWS, row.block, generator=generator)
    step.time = torch.full((DRAWS,), time)
    write = rule.decide(step).write.tolist()
    return Counter(tuple(c for c, taken in enumerate(w) if taken) for w in write)


def assert_likely(found: int, probability: float) -> None:
    """Within 4.5 standard deviations, which 1 in 100,000 fair draws is not."""
    deviation = sqrt(DRAWS * probability * (1 - probability))
    assert abs(found - DRAWS * probability) < 4.5 * deviation


@of_each_score
@pytest.mark.parametrize("alg_temp", [0.2, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_lots_are_drawn_from_the_softmax_without_replacement(
    name: str, alg_temp: float, count: int
) -> None:
    """Another distribution is not what `alg_temp` means in Dream."""
    row = uniform_row(CHANCES, margin=CHANCES, entropy=[-c for c in CHANCES])
    row.alg_temp = alg_temp
    found = draws(get_rule(name), row, time=count / 4)
    weight = [exp(chance / alg_temp) for chance in CHANCES]

    def probability_of(order: tuple[int, ...]) -> float:
        left = [sum(weight) - sum(weight[c] for c in order[:i]) for i in range(count)]
        return prod(weight[c] / rest for c, rest in zip(order, left, strict=True))

    for columns in combinations(range(4), count):
        likely = sum(probability_of(order) for order in permutations(columns))
        assert_likely(found.pop(columns, 0), likely)
    assert not found


def test_lots_of_masks_alone_are_drawn() -> None:
    """A decoded position in the urn would take the place of a mask."""
    row = Row([False, True, True], [0.99, 0.5, 0.5], alg_temp=0.1)
    found = draws(get_rule("maskgit_plus"), row, time=0.5)
    assert found.keys() == {(1,), (2,)}
    assert_likely(found[1,], 0.5)


@pytest.mark.parametrize("time", [0.0, 0.1, 0.5, 1.0])
def test_origin_takes_each_mask_by_itself(time: float) -> None:
    """A fixed number of masks at random places is another rule."""
    row = uniform_row([0.9, 0.1, 0.5, NAN], masked=[True, True, True, False])
    found = draws(get_rule("origin"), row, time)
    for taken in range(4):
        for columns in combinations(range(3), taken):
            probability = time**taken * (1 - time) ** (3 - taken)
            if probability in (0, 1):
                assert found.pop(columns, 0) == DRAWS * probability
            else:
                assert_likely(found.pop(columns, 0), probability)
    assert not found


def test_origin_takes_the_lots_below_its_time() -> None:
    """`<=` is not the authors' comparison, and takes one lot more."""
    row = uniform_row([0.5] * 3, steps=2, noise=[0.0, NAN, 0.9])
    row.noise[1] = row.time
    assert written(get_rule("origin"), row) == [{0}]
    for batch in BATCHES:
        expected = [{c for c in r.masks if r.noise[c] < r.time} for r in batch]
        assert written(get_rule("origin"), *batch) == expected


def test_the_lots_of_the_batches_are_not_all_the_same() -> None:
    """Without draws that matter the comparisons above show little."""
    kinds = Counter(
        by_hand("maskgit_plus", row)
        != set(row.highest_first(row.confidence)[: count_of(row)])
        for batch in MORE_BATCHES
        for row in batch
        if row.alg_temp > 0 and 0 < count_of(row) < len(row.masks)
    )
    assert kinds[True] >= 30 and kinds[False] >= 30, kinds
    rows = [row for batch in MORE_BATCHES for row in batch]
    assert not any(isnan(row.noise[c]) for row in rows for c in row.masks)


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_the_time_of_each_step_is_the_authors(steps: int, eps: float) -> None:
    """A bit of it decides whether a step takes a token."""
    expected = [share_by_hand(steps, eps, step) for step in range(steps)]
    grid = time_grid(steps, eps)
    assert grid.dtype == torch.float32
    assert grid.tolist() == expected
