"""Noise is a function of its arguments, uniform, and unrelated between them."""

import math

import pytest
import torch

from vllm_dllm.ops.noise import uniform

NUMBER = 1 << 14
WIDE = 1 << 64
ARGUMENTS = ["seed", "position", "step", "stream"]


def noise(seed: int = 3, position: int = 5, step: int = 2, stream: int = 0) -> float:
    values = (torch.tensor(value) for value in (seed, position, step))
    return uniform(*values, stream).item()


def along(argument: str, number: int = NUMBER, **others: int) -> torch.Tensor:
    """Numbers whose arguments differ by one in `argument` alone."""
    values = {"seed": 3, "position": 5, "step": 2, "stream": 0, **others}
    if argument == "stream":
        return torch.tensor([noise(**{**values, "stream": s}) for s in range(number)])
    tensors = {k: torch.tensor(v) for k, v in values.items() if k != "stream"}
    tensors[argument] = torch.arange(number) + values[argument]
    return uniform(**tensors, stream=values["stream"])


def surprise(bins: torch.Tensor, number_of_bins: int) -> float:
    """Standard deviations that the chi-square statistic lies from its mean."""
    counts = torch.bincount(bins, minlength=number_of_bins).double()
    mean = len(bins) / number_of_bins
    statistic = ((counts - mean) ** 2 / mean).sum().item()
    freedom = number_of_bins - 1
    return abs(statistic - freedom) / math.sqrt(2 * freedom)


def plain(seed: int, position: int, step: int, stream: int) -> float:
    """The same in Python's unbounded integers."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % WIDE
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WIDE
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WIDE
        return x ^ (x >> 31)

    state = mix(mix(seed % WIDE) ^ stream)
    return (mix(mix(state ^ position) ^ step) % (1 << 48)) / (1 << 48)


KNOWN: list[tuple[tuple[int, int, int, int], float]] = [
    ((0, 0, 0, 0), 0.455240892248554),
    ((7, 3, 2, 0), 0.5582713393481313),
    ((7, 3, 2, 1), 0.35615136458446983),
    ((72057594037927935, 131071, 31, 0), 0.37198216207193724),
    ((-1, 1, 0, 1), 0.23101610381966253),
]


@pytest.mark.parametrize(("arguments", "value"), KNOWN)
def test_a_seed_means_the_same_numbers_for_ever(
    arguments: tuple[int, int, int, int], value: float
) -> None:
    """A recorded answer could not be reproduced after an upgrade."""
    assert noise(*arguments) == value


@pytest.mark.parametrize(
    "seed", [0, 1, 2**31, 2**56 - 1, 2**63 - 1, -1, -(2**63), 1234567890123456789]
)
def test_integers_wrap_like_unsigned_ones(seed: int) -> None:
    """A shift that drags the sign along, or a product that saturates, loses bits."""
    for position in (0, 1, 31, 131071):
        for step in (0, 7):
            for stream in (0, 1):
                if seed + stream < 2**63:
                    arguments = (seed, position, step, stream)
                    assert noise(*arguments) == plain(*arguments)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_every_argument_matters(argument: str) -> None:
    """Positions, steps or requests would be drawn alike."""
    values = along(argument, 256)
    assert len(set(values.tolist())) == 256


@pytest.mark.parametrize("argument", ARGUMENTS[:3])
def test_numbers_are_uniform(argument: str) -> None:
    """Tokens would be drawn more or less often than the model says."""
    values = along(argument)
    for scale in (1, 64, 4096):  # bits further down, too
        bins = (values * scale % 1 * 64).long()
        assert surprise(bins, 64) < 5
    assert values.mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("argument", ARGUMENTS[:3])
@pytest.mark.parametrize("distance", [1, 2, 4, 32])
def test_neighbours_are_independent(argument: str, distance: int) -> None:
    """Neighbouring positions would be drawn from the same end of the distribution."""
    values = along(argument, NUMBER + distance)
    left, right = values[:-distance], values[distance:]
    assert surprise((left * 8).long() * 8 + (right * 8).long(), 64) < 5


@pytest.mark.parametrize("argument", ARGUMENTS[:3])
def test_streams_are_independent(argument: str) -> None:
    """The order of positions would depend on the tokens that are drawn for them."""
    left, right = along(argument, stream=0), along(argument, stream=1)
    assert surprise((left * 8).long() * 8 + (right * 8).long(), 64) < 5


def test_streams_of_neighbouring_seeds_are_unrelated() -> None:
    """The answers of one request with `n` have neighbouring seeds."""
    assert noise(seed=7, stream=1) != noise(seed=8, stream=0)


def test_numbers_lie_from_0_up_to_but_not_including_1() -> None:
    """1 would draw the token behind the last."""
    for seed in (0, -1, 2**62):
        values = along("position", seed=seed)
        assert values.dtype == torch.float64
        assert 0 <= values.min() < 0.01
        assert 0.99 < values.max() <= 1 - 2**-48
        assert torch.equal(values * 2**48 % 1, torch.zeros(NUMBER).double())


def test_a_number_does_not_depend_on_the_shape_it_is_asked_in() -> None:
    """A request would be answered otherwise in another batch."""
    seed, position = torch.arange(5).unsqueeze(1) * 99, torch.arange(7)
    grid = uniform(seed, position, torch.tensor(4), 1)
    assert grid.shape == (5, 7)
    for row in range(5):
        for column in range(7):
            assert grid[row, column] == noise(row * 99, column, 4, 1)
    assert torch.equal(grid, uniform(seed, position, torch.tensor(4), 1))


def test_arguments_are_left_as_they_were() -> None:
    """Seeds and positions of slots are passed in, not copies."""
    seed, position, step = (torch.arange(4) + offset for offset in (0, 10, 20))
    uniform(seed, position, step, 0)
    assert [t.tolist()[0] for t in (seed, position, step)] == [0, 10, 20]
