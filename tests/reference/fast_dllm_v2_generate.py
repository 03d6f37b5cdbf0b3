"""Fast-dLLM v2's `generate`: greedy, without its block cache, one prompt at a time.

Differences from the authors' code: the mask id is never a candidate, a prompt of
exactly one block is like one of several (theirs loses it), and the answer is as long as
it is asked to be.
"""

import torch

from tests.reference.fast_dllm_v2 import FastDLLMv2
from tests.reference.masks import block_causal


class Sequence:
    """A prompt and what is decoded of its answer."""

    def __init__(self, prompt: list[int], gen_length: int, eos_id: int) -> None:
        self.ids, self.masked = list(prompt), [False] * len(prompt)
        self.start, self.gen_length, self.eos_id = len(prompt), gen_length, eos_id

    def add(self, token: int, is_mask: bool) -> None:
        self.ids.append(token)
        self.masked.append(is_mask)

    def answer(self) -> list[int]:
        """What stands before the first mask, cut where it ends."""
        known = [*self.masked, True].index(True)
        answer = self.ids[self.start : known][: self.gen_length]
        if self.eos_id in answer:
            answer = answer[: answer.index(self.eos_id) + 1]
        return answer

    def is_done(self) -> bool:
        answer = self.answer()
        return len(answer) == self.gen_length or self.eos_id in answer


@torch.no_grad()
def generate(
    model: FastDLLMv2,
    prompt: list[int],
    gen_length: int,
    sub_block_length: int,
    threshold: float,
    mask_id: int,
    eos_id: int,
) -> tuple[list[int], int]:
    """Decode up to `gen_length` tokens, and no further than the first `eos_id`.

    Returns:
        tokens, and the forwards a cached implementation needs: one for the whole blocks
        of the prompt, one a step, and one that makes a block final.
    """
    block, text = model.config.block_size, Sequence(prompt, gen_length, eos_id)
    forwards = int(len(prompt) > block and len(prompt) % block > 0)

    def next_tokens() -> tuple[list[float], list[int]]:
        """Of each position but the first: how sure its token is, and which it is."""
        mask = block_causal(len(text.ids), block)
        logits = model(torch.tensor(text.ids), mask)
        logits[:, mask_id] = -torch.inf
        confidence, token = logits.softmax(-1).max(-1)
        return [0.0, *confidence.tolist()], [0, *token.tolist()]

    while not text.is_done():
        begin = len(text.ids) // block * block
        if len(text.ids) == begin:
            forwards += 1
            text.add(next_tokens()[1][-1], is_mask=False)
        while len(text.ids) < begin + block:
            text.add(mask_id, is_mask=True)
        while any(text.masked) and not text.is_done():
            forwards += 1
            confidence, token = next_tokens()
            sub_block = (text.masked.index(True) - begin) // sub_block_length
            candidates = [
                position
                for position in range(begin, begin + block)
                if text.masked[position]
                and (position - begin) // sub_block_length == sub_block
            ]
            surest = max(candidates, key=lambda position: confidence[position])
            for position in candidates:
                if position == surest or confidence[position] > threshold:
                    text.ids[position] = token[position]
                    text.masked[position] = False
    return text.answer(), forwards
