"""Training batches: rows of one length without padding beyond their canvas, and noise.

What the rows of a checkpoint hold, and how they are masked, is its recipe's to say.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.tiny import skills, tokenizer
from tools.tiny.recipe import Recipe
from tools.tiny.rows import Row, Stage, stage_of

POOL_SIZE = 24576
POOL_EPOCHS = 2
WORKSHEET_LENGTH = 32
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


def make_rows(recipe: Recipe, seed: int, pool: int) -> list[Row]:
    """The pool's rows, a function of (recipe, seed, pool) alone."""
    rng = Random(f"{seed}:{pool}")
    stage = stage_of(recipe.stages, pool)
    prompts, answers = [], []
    worksheets = round(POOL_SIZE * stage.worksheet_share)
    for _ in range(POOL_SIZE - worksheets):
        example = stage.example(rng)
        prompts.append(with_context(rng, stage, example))
        answers.append(example.answer)
    encode = tokenizer.build().encode_batch
    rows = [
        recipe.row(rng, prompt.ids, answer.ids)
        for prompt, answer in zip(encode(prompts), encode(answers), strict=True)
    ]
    return rows + [worksheet(rng, stage, encode) for _ in range(worksheets)]


def worksheet(rng: Random, stage: Stage, encode: Callable[..., Any]) -> Row:
    """Sums without the chat frame, of which only results are masked; where a question
    stands before its sum, at times more of it."""
    tokens: list[int] = []
    maskable: list[bool] = []
    easy = rng.random() < stage.easy_share
    questions, answers = [], []
    for _ in range(WORKSHEET_LENGTH // 5):
        task = rng.choice(WORKSHEET_TASKS)
        example = skills.draw(rng, task, False, False, easy)
        asked = stage.question_share and rng.random() < stage.question_share
        questions.append(example.question if asked else "")
        answers.append(example.answer)
    for question, line in zip(encode(questions), encode(answers), strict=True):
        given = line.tokens.index(" = ") + 1
        if question.ids and rng.random() < 0.5:
            given = rng.randint(0, given)
        tokens += [*question.ids, *line.ids, tokenizer.EOS_ID]
        masks = len(line.ids) + 1 - given
        maskable += [False] * (len(question.ids) + given) + [True] * masks
    ids = np.array(tokens[:WORKSHEET_LENGTH], np.int16)
    return Row(ids, np.array(maskable[:WORKSHEET_LENGTH]), WORKSHEET_LENGTH)


def with_context(rng: Random, stage: Stage, example: skills.Example) -> str:
    """The rendered prompt; at times after another system text or an earlier turn."""
    system, turns = tokenizer.DEFAULT_SYSTEM, [(example.question, example.answer)]
    if example.skill in skills.LONG_TASKS:
        return tokenizer.render(turns, system)
    draw = rng.random()
    if draw < 0.15:
        text = rng.choice(SYSTEMS)
        # Cut anywhere, so that answers start at every offset inside a block.
        system = text[: rng.randint(0, len(text))]
    elif draw < 0.25:
        earlier = stage.short_example(rng)
        turn = (earlier.question, earlier.answer)
        turns.insert(0, rng.choice(SMALL_TALK) if rng.random() < 0.4 else turn)
    return tokenizer.render(turns, system)


@dataclass(frozen=True)
class Batch:
    """ids: [rows, length] int64 clean; masked and padding: [rows, length] bool."""

    ids: Tensor
    masked: Tensor
    padding: Tensor


def noised(
    recipe: Recipe, rows: list[Row], noise: np.random.Generator, stage: Stage
) -> Batch:
    """Rows of one length, masked by the recipe."""
    ids = np.stack([row.ids for row in rows]).astype(np.int64)
    maskable = np.stack([row.maskable for row in rows])
    end = np.array([row.end for row in rows])[:, None]
    masked = recipe.masks(maskable, end, noise, stage)
    padding = np.arange(ids.shape[1]) >= end
    return Batch(*map(torch.from_numpy, (ids, masked, padding)))


def pool_batches(recipe: Recipe, seed: int, pool: int, tokens: int) -> Iterator[Batch]:
    """All batches of one pool, about `tokens` tokens each, lengths in random order."""
    rng = Random(f"{seed}:{pool}:order")
    noise = np.random.default_rng((seed, pool))
    stage = stage_of(recipe.stages, pool)
    by_length: dict[int, list[Row]] = {}
    for row in make_rows(recipe, seed, pool):
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
            yield noised(recipe, group, noise, stage)
