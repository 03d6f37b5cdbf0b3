"""Held-out accuracy with the reference decoder, no server."""

from collections.abc import Sequence

from torch import nn

from tools.tiny import skills, tokenizer
from tools.tiny.recipe import Recipe


def evaluate(
    recipe: Recipe,
    model: nn.Module,
    count: int,
    seed: int,
    names: Sequence[str] = skills.SKILLS,
) -> dict[str, dict[str, float]]:
    """Per skill: exact match, tokens (EOS included) and forwards per request."""
    codec = tokenizer.build()
    table = {}
    for skill in names:
        right = tokens = forwards = 0
        for example in skills.held_out_examples(skill, count, seed):
            prompt = codec.encode(tokenizer.render([(example.question, "")])).ids
            output, steps = recipe.decode(model, prompt)
            right += codec.decode(output) == example.answer
            tokens, forwards = tokens + len(output), forwards + steps
        table[skill] = {
            "exact": right / count,
            "tokens": tokens / count,
            "forwards": forwards / count,
            "tokens_per_forward": tokens / forwards,
        }
    return table
