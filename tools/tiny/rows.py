"""What recipes and batches share: a stage of training, a row, and random masks."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from tools.tiny import skills, tokenizer

FULL_MASK_SHARE = 0.35
"""Share of the rows in which all that may be masked is."""

Flags = NDArray[np.bool_]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """What the pools from number `first_pool` on are made of."""

    first_pool: int
    weights: dict[str, float]
    easy_share: float = 0.0
    worksheet_share: float = 0.0
    suffix_share: float = 0.0
    question_share: float = 0.0
    """Share of a worksheet's sums that stand after their question."""
    long_share: float = 0.0
    """Share of examples with a long answer."""
    long_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Of skills.LONG_TASKS, in their order."""

    def example(self, rng: Random) -> skills.Example:
        """One training example of this stage."""
        if self.long_share and rng.random() < self.long_share:
            task = rng.choices(list(skills.LONG_TASKS), self.long_weights)[0]
            return skills.draw(rng, task, held_out=False, as_json=False)
        return self.short_example(rng)

    def short_example(self, rng: Random) -> skills.Example:
        """One whose answer is short."""
        return skills.train_example(rng, self.weights, self.easy_share)


def shares(*weights: float) -> dict[str, float]:
    """Weights in the order of skills.TASKS, by name."""
    return dict(zip(skills.TASKS, weights, strict=True))


def stage_of(stages: tuple[Stage, ...], pool: int) -> Stage:
    """The last stage that has begun."""
    return [stage for stage in stages if stage.first_pool <= pool][-1]


@dataclass(frozen=True)
class Row:
    """ids: [length] int16; maskable: the same shape, bool; padding from end."""

    ids: NDArray[np.int16]
    maskable: Flags
    end: int

    @classmethod
    def of(cls, prompt: list[int], answer: list[int], first: int, length: int) -> Row:
        """Prompt + answer + EOS up to `length`, cut there; maskable from `first` on."""
        ids = np.full(length, tokenizer.EOS_ID, np.int16)
        tokens = (prompt + answer)[:length]
        ids[: len(tokens)] = tokens
        end = len(prompt) + len(answer) + 1
        return cls(ids, np.arange(length) >= first, end)


def random_masks(
    maskable: Flags, end: Places, noise: np.random.Generator, suffix_share: float
) -> Flags:
    """Mask what may be: a uniform share, or everything, or all from some point on.

    Args:
        maskable: [rows, length].
        end: [rows, 1], the positions from which there is padding.
    """
    count, length = maskable.shape
    ratio = noise.random((count, 1))
    ratio[noise.random((count, 1)) < FULL_MASK_SHARE] = 1.0
    masked = noise.random((count, length)) < ratio
    if suffix_share:
        start = maskable.argmax(1)[:, None]
        cut = noise.integers(start, np.minimum(end, length))
        chosen = noise.random((count, 1)) < suffix_share
        masked = np.where(chosen, np.arange(length) >= cut, masked)
    return masked & maskable
