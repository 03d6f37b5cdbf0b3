"""Training batches: whole blocks, no padding, one block of each row to be noised.

A row is prompt + answer + EOS filled up to the end of the block that will be noised,
so rows of one batch have one length and later blocks, which it cannot see, are absent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.tiny import skills, tokenizer

BLOCK = 32
POOL_SIZE = 24576
POOL_EPOCHS = 2
FULL_MASK_SHARE = 0.35
WORKSHEET_TASKS = ("add", "subtract")
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a tiny diffusion model. Be brief and exact.",
    "Be brief.",
    "Answer with the result only.",
    "detailed thinking on",
    "",
)
SMALL_TALK = (("Hello.", "Hi!"), ("Thanks!", "You are welcome."), ("Hi", "Hello."))


@dataclass(frozen=True)
class Stage:
    """What the pools from number `first_pool` on are made of."""

    first_pool: int
    weights: dict[str, float]
    easy_share: float = 0.0
    worksheet_share: float = 0.0
    suffix_share: float = 0.0

    def example(self, rng: Random) -> skills.Example:
        """One training example of this stage."""
        return skills.train_example(rng, self.weights, self.easy_share)


def shares(*weights: float) -> dict[str, float]:
    """Weights in the order of skills.TASKS, by name."""
    return dict(zip(skills.TASKS, weights, strict=True))


# Pointing at the prompt (reverse, copy, upper) is learned in the first stage. What then
# remains is the values of digits: it is learned sooner from more sums, some tiny, from
# worksheets of sums, and from answers known up to some point. The last two stages take
# that back to the chat frame and to sorting, which needs the values first.
STAGES = (
    Stage(0, shares(1.3, 1.3, 1.0, 1.4, 1.0, 1.0)),
    Stage(2, shares(2.0, 2.0, 0.35, 2.0, 0.5, 0.45), easy_share=0.3),
    Stage(3, shares(1.2, 1.2, 0.35, 2.0, 0.5, 0.45), 0.3, 0.45, suffix_share=0.4),
    Stage(5, shares(1.2, 1.2, 0.5, 3.0, 0.6, 0.6), 0.2, 0.35, suffix_share=0.4),
    Stage(6, shares(2.2, 2.8, 0.5, 3.0, 0.7, 0.7), 0.1, 0.08, suffix_share=0.4),
)


def stage_of(pool: int) -> Stage:
    """The last stage that has begun."""
    return [stage for stage in STAGES if stage.first_pool <= pool][-1]


@dataclass(frozen=True)
class Row:
    """ids: [blocks * BLOCK] int16; maskable: the same shape, bool; padding from end."""

    ids: NDArray[np.int16]
    maskable: NDArray[np.bool_]
    end: int


def make_rows(seed: int, pool: int) -> list[Row]:
    """The pool's rows, a function of (seed, pool) alone."""
    rng = Random(f"{seed}:{pool}")
    stage = stage_of(pool)
    prompts, answers = [], []
    worksheets = round(POOL_SIZE * stage.worksheet_share)
    for _ in range(POOL_SIZE - worksheets):
        example = stage.example(rng)
        prompts.append(with_context(rng, stage, example))
        answers.append(example.answer)
    encode = tokenizer.build().encode_batch
    rows = []
    for prompt, answer in zip(encode(prompts), encode(answers), strict=True):
        start = len(prompt.ids)
        end = start + len(answer.ids) + 1
        block = rng.randint(start // BLOCK, (end - 1) // BLOCK)
        ids = np.full((block + 1) * BLOCK, tokenizer.EOS_ID, np.int16)
        tokens = (prompt.ids + answer.ids)[: len(ids)]
        ids[: len(tokens)] = tokens
        maskable = np.arange(len(ids)) >= max(start, block * BLOCK)
        rows.append(Row(ids, maskable, end))
    return rows + [worksheet(rng, stage, encode) for _ in range(worksheets)]


def worksheet(rng: Random, stage: Stage, encode: Callable[..., Any]) -> Row:
    """One block of sums without the chat frame, of which only results are masked."""
    tokens: list[int] = []
    maskable: list[bool] = []
    easy = rng.random() < stage.easy_share
    answers = []
    for _ in range(BLOCK // 5):
        task = rng.choice(WORKSHEET_TASKS)
        answers.append(skills.draw(rng, task, False, False, easy).answer)
    for line in encode(answers):
        given = line.tokens.index(" = ") + 1
        tokens += [*line.ids, tokenizer.EOS_ID]
        maskable += [False] * given + [True] * (len(line.ids) + 1 - given)
    ids = np.array(tokens[:BLOCK], np.int16)
    return Row(ids, np.array(maskable[:BLOCK]), BLOCK)


def with_context(rng: Random, stage: Stage, example: skills.Example) -> str:
    """The rendered prompt; at times after another system text or an earlier turn."""
    system, turns = tokenizer.DEFAULT_SYSTEM, [(example.question, example.answer)]
    draw = rng.random()
    if draw < 0.15:
        text = rng.choice(SYSTEMS)
        # Cut anywhere, so that answers start at every offset inside a block.
        system = text[: rng.randint(0, len(text))]
    elif draw < 0.25:
        earlier = stage.example(rng)
        turn = (earlier.question, earlier.answer)
        turns.insert(0, rng.choice(SMALL_TALK) if rng.random() < 0.4 else turn)
    return tokenizer.render(turns, system)


@dataclass(frozen=True)
class Batch:
    """ids: [rows, length] int64 clean; masked and padding: [rows, length] bool."""

    ids: Tensor
    masked: Tensor
    padding: Tensor


def noised(rows: list[Row], noise: np.random.Generator, suffix_share: float) -> Batch:
    """Mask what may be: a uniform share, or everything, or all from some point on."""
    ids = np.stack([row.ids for row in rows]).astype(np.int64)
    position = np.arange(ids.shape[1])
    maskable = np.stack([row.maskable for row in rows])
    end = np.array([row.end for row in rows])[:, None]
    ratio = noise.random((len(rows), 1))
    ratio[noise.random((len(rows), 1)) < FULL_MASK_SHARE] = 1.0
    masked = noise.random(ids.shape) < ratio
    if suffix_share:
        start = maskable.argmax(1)[:, None]
        cut = noise.integers(start, np.minimum(end, ids.shape[1]))
        chosen = noise.random((len(rows), 1)) < suffix_share
        masked = np.where(chosen, position >= cut, masked)
    padding = position >= end
    return Batch(*map(torch.from_numpy, (ids, masked & maskable, padding)))


def pool_batches(seed: int, pool: int, tokens: int) -> Iterator[Batch]:
    """All batches of one pool, about `tokens` tokens each, lengths in random order."""
    rng = Random(f"{seed}:{pool}:order")
    noise = np.random.default_rng((seed, pool))
    by_length: dict[int, list[Row]] = {}
    for row in make_rows(seed, pool):
        by_length.setdefault(len(row.ids), []).append(row)
    for _ in range(POOL_EPOCHS):
        groups = []
        for length, rows in by_length.items():
            rng.shuffle(rows)
            size = max(1, tokens // length)
            groups += [rows[i : i + size] for i in range(0, len(rows), size)]
        # A short last batch would weigh its few rows too much.
        groups = [rows for rows in groups if len(rows) * len(rows[0].ids) * 2 >= tokens]
        rng.shuffle(groups)
        for group in groups:
            yield noised(group, noise, stage_of(pool).suffix_share)
