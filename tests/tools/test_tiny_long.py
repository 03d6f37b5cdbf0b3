"""The long skills of tiny-llada2-long, and what it was trained with."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from tests.reference.masks import block_causal
from tests.reference.multi_block_generate import Wishes, generate
from tools.tiny import skills, tokenizer
from tools.tiny.llada2 import BLOCK, LongLLaDA2Recipe

FOLDER = Path(__file__).parents[2] / "models" / "tiny-llada2-long"
CODEC = tokenizer.build()
RECIPE = LongLLaDA2Recipe()


def encoded(example: skills.Example) -> tuple[list[int], list[int]]:
    """Token ids of the chat up to the answer, and of the answer."""
    prompt = tokenizer.render([(example.question, "")])
    return CODEC.encode(prompt).ids, CODEC.encode(example.answer).ids


@pytest.mark.parametrize("skill", skills.LONG_TASKS)
def test_four_blocks_in_flight_answer_right_and_sooner(skill: str) -> None:
    """The bundled weights would be others than those that the docs measured."""
    model = RECIPE.load(FOLDER)

    def logits(ids: list[int | None]) -> torch.Tensor:
        known = [tokenizer.MASK_ID if token is None else token for token in ids]
        found = model(torch.tensor([known]), block_causal(len(known), BLOCK))[0]
        found[:, tokenizer.MASK_ID] = -torch.inf
        return found

    [example] = skills.held_out_examples(skill, 1, 7)
    prompt, answer = encoded(example)
    assert len(answer) > 100
    answer = [*answer, tokenizer.EOS_ID]
    forwards = []
    for size in (1, 4):
        wishes = Wishes(BLOCK, size, 0.95, 0.1)
        tokens, run = generate(logits, prompt, len(answer), wishes)
        assert tokens == answer
        forwards.append(run.active_forwards)
    assert forwards[1] < forwards[0]


def test_blocks_are_noised_at_once_and_later_ones_more() -> None:
    """With whole blocks before it, a block is never shown what is in flight."""
    [example] = skills.held_out_examples("long copy", 1, 0)
    rng, noise = Random(0), np.random.default_rng(0)
    shares = []
    for _ in range(400):
        row = RECIPE.row(rng, *encoded(example))
        several = row.maskable.sum() > 2 * BLOCK
        where, end = row.maskable[None], np.array([[row.end]])
        masked = RECIPE.masks(where, end, noise, RECIPE.stages[-1])[0]
        assert not (masked & ~row.maskable).any()
        if several:
            shares.append(masked.reshape(-1, BLOCK)[-3:].mean(1))
    assert len(shares) > 50
    front, second, third = np.mean(shares, axis=0)
    assert 0.1 < front < second < third
