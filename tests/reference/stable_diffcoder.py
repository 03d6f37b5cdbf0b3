"""Stable-DiffCoder in plain PyTorch: Llama's layers, and its authors' greedy loop.

Independent of vLLM and of transformers. Differences from the authors' `generate_block`:
the mask id is never a candidate, `steps` are those of a block, the answer may have any
length, and nothing ends at an EOS.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from tests.reference.masks import block_causal
from tests.reference.sdar import SDAR, SDARConfig


@dataclass
class StableDiffcoderConfig(SDARConfig):
    """With the authors' defaults for what config.json leaves out."""

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        head_dim = raw["hidden_size"] // raw["num_attention_heads"]
        defaults = {"head_dim": head_dim, "mask_token_id": 5, "block_size": 4}
        return super().from_dict(defaults | raw)


class StableDiffcoder(SDAR):
    """SDAR without the norms of query and key heads."""

    config_class = StableDiffcoderConfig

    def __init__(self, config: SDARConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.q_norm = nn.Identity()
            layer.self_attn.k_norm = nn.Identity()


@torch.no_grad()
def generate(
    model: StableDiffcoder,
    prompt: list[int],
    gen_length: int,
    steps: int | None = None,
    threshold: float | None = None,
) -> tuple[list[int], int]:
    """Decode `gen_length` tokens in blocks of the absolute grid; the last one ends with
    the answer.

    Args:
        steps: forwards of a block; None for one token each.
        threshold: instead, take candidates that are at least so probable, and the best
            one in any case.

    Returns:
        tokens, and the forwards: one for the whole blocks of the prompt, and for each
        block its steps and one to store it.
    """
    block, mask_id = model.config.block_size, model.config.mask_token_id
    start = len(prompt)
    length = start + gen_length
    sequence = torch.tensor(prompt + [mask_id] * (length - start))
    masked = torch.arange(length) >= start
    allowed = block_causal(length, block)
    forwards = int(start >= block)
    for begin in range(start // block * block, length, block):
        end = min(begin + block, length)
        inside, step = slice(begin, end), 0
        shares = schedule(int(masked[inside].sum()), steps or block)
        while masked[inside].any():
            logits = model(sequence[:end], allowed[:end, :end])[inside]
            forwards += 1
            confidence, token = candidates(logits, mask_id)
            order = confidence.masked_fill(~masked[inside], -1).argsort(
                descending=True, stable=True
            )
            if threshold is not None:
                number = max(1, int((confidence >= threshold)[masked[inside]].sum()))
            else:
                number = shares[step]
            taken = order[:number]
            sequence[inside][taken] = token[taken]
            masked[inside][taken] = False
            step += 1
        forwards += 1
    return sequence[start : start + gen_length].tolist(), forwards


def schedule(masks: int, steps: int) -> list[int]:
    """How many of a block's masks each of its steps decodes."""
    return [masks // steps + (step < masks % steps) for step in range(steps)]


def candidates(logits: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """Probability (float64) and id of every row's best token that is not the mask."""
    logits[:, mask_id] = -torch.inf
    return logits.double().softmax(-1).max(-1)
