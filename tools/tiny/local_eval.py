"""Held-out accuracy with the reference decoder, no server."""

from torch import nn

from tests.reference.llada2_generate import generate
from tools.tiny import skills, tokenizer

BLOCK, STEPS, THRESHOLD, GEN_LENGTH = 32, 32, 0.95, 64


def evaluate(model: nn.Module, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Per skill: exact match, tokens (EOS included) and forwards per request."""
    codec = tokenizer.build()
    table = {}
    for skill in skills.SKILLS:
        right = tokens = forwards = 0
        for example in skills.held_out_examples(skill, count, seed):
            prompt = codec.encode(tokenizer.render([(example.question, "")])).ids
            output, steps = generate(
                model,
                prompt,
                GEN_LENGTH,
                BLOCK,
                STEPS,
                THRESHOLD,
                tokenizer.MASK_ID,
                tokenizer.EOS_ID,
            )
            right += codec.decode(output) == example.answer
            tokens, forwards = tokens + len(output), forwards + steps
        table[skill] = {
            "exact": right / count,
            "tokens": tokens / count,
            "forwards": forwards / count,
            "tokens_per_forward": tokens / forwards,
        }
    return table
