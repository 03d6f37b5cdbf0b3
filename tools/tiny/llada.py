"""tiny-llada: a dense LLaDA, full attention over prompt and canvas."""

from functools import cache
from random import Random
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.reference.llada import LLaDA, LLaDAConfig
from tests.reference.llada_generate import generate
from tools.tiny import tokenizer
from tools.tiny.recipe import Recipe
from tools.tiny.rows import Flags, Places, Row, Stage, random_masks, shares

ROW_MULTIPLE = 8
CANVASES = {12: 0.35, 16: 0.21, 24: 0.2, 32: 0.2, 64: 0.04}
DECODED_BLOCKS = (8, 16, 32)
BLOCKWISE_SHARE = 0.35
GIVEN_SHARE, RESULT_SHARE = 0.4, 0.7
RESULT_MARKS = (" = ", ": ")
MAX_RMS = 0.1
BLOCK, THRESHOLD, GEN_LENGTH = 32, 0.9, 32


@cache
def result_marks() -> set[int]:
    """The tokens after which an answer's result stands."""
    codec = tokenizer.build()
    return {codec.token_to_id(mark) for mark in RESULT_MARKS}


def given(rng: Random, answer: list[int]) -> int:
    """How many tokens of an answer are never masked; in most rows none."""
    if rng.random() >= GIVEN_SHARE:
        return 0
    results = [i + 1 for i, token in enumerate(answer) if token in result_marks()]
    if results and rng.random() < RESULT_SHARE:
        return results[0]
    return rng.randint(0, len(answer))


class LLaDARecipe(Recipe):
    """Rows are whole canvases, noised as the decoder meets them, block by block."""

    model_class, config_class = LLaDA, LLaDAConfig
    config: ClassVar = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": 256,
        "n_heads": 8,
        "n_kv_heads": 8,
        "n_layers": 4,
        "mlp_hidden_size": 512,
        "vocab_size": tokenizer.VOCAB_SIZE,
        "embedding_size": tokenizer.VOCAB_SIZE,
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_theta": 500000.0,
        "rope_full_precision": True,
        "max_sequence_length": 2048,
        "weight_tying": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "bias_for_layer_norm": False,
        "attention_layer_norm": False,
        "alibi": False,
        "scale_logits": False,
        "input_emb_norm": False,
        "block_group_size": 1,
        "mask_token_id": tokenizer.MASK_ID,
        "eos_token_id": tokenizer.EOS_ID,
        "pad_token_id": tokenizer.EOS_ID,
    }
    # Pointing at the prompt first (reverse, copy, upper), with some sums; then mostly
    # sums, on worksheets too; at the end the chat frame alone.
    stages = (
        Stage(0, shares(1.0, 1.0, 1.0, 0.8, 1.0, 1.0), 0.0, 0.1, 0.3, 0.5),
        Stage(1, shares(1.4, 1.4, 0.4, 0.8, 1.0, 1.0), 0.1, 0.3, 0.4, 0.5),
        Stage(3, shares(1.0, 1.0, 0.4, 0.4, 0.6, 0.6), 0.0, 0.9, 0.4, 0.3),
        Stage(4, shares(2.0, 2.0, 0.6, 1.2, 0.9, 0.8), 0.05, 0.4, 0.4, 0.5),
        Stage(6, shares(1.8, 2.2, 0.6, 1.8, 0.8, 0.7), 0.05, 0.1, 0.4, 0.5),
        Stage(8, shares(1.6, 3.6, 0.4, 0.5, 0.5, 0.5), 0.05, 0.35, 0.4, 0.5),
        Stage(10, shares(1.6, 2.8, 0.6, 0.8, 0.8, 0.7), 0.05, 0.1, 0.4, 0.5),
    )
    residual_writers = ("attn_out.weight", "ff_out.weight")
    init_std = 0.05
    autocast = True
    decay_from = 0.6

    def row(self, rng: Random, prompt: list[int], answer: list[int]) -> Row:
        """Prompt and a canvas of random length, rounded up so that rows can batch."""
        start = len(prompt)
        first = start + given(rng, answer)
        canvas = rng.choices(list(CANVASES), list(CANVASES.values()))[0]
        length = start + max(canvas, len(answer) + 1)
        return Row.of(prompt, answer, first, length + -length % ROW_MULTIPLE)

    def masks(
        self, maskable: Flags, end: Places, noise: np.random.Generator, stage: Stage
    ) -> Flags:
        """`random_masks`; in some rows one block partly, and all to the right of it."""
        masked = random_masks(maskable, end, noise, stage.suffix_share)
        count, length = maskable.shape
        start = maskable.argmax(1)[:, None]
        block = noise.choice(DECODED_BLOCKS, (count, 1))
        # The block of a random answer token, counted from the prompt's end.
        token = noise.integers(start, np.minimum(end, length))
        left = start + (token - start) // block * block
        position = np.arange(length)
        partly = noise.random((count, length)) < noise.random((count, 1))
        blockwise = (
            maskable & (position >= left) & (partly | (position >= left + block))
        )
        chosen = noise.random((count, 1)) < BLOCKWISE_SHARE
        return np.where(chosen, blockwise, masked)

    def logits(self, model: nn.Module, ids: Tensor) -> Tensor:
        """ids: [rows, length] -> [rows, length, vocab]; every position sees all."""
        # The fused kernel is several times slower backwards on rows as short as these.
        with sdpa_kernel(SDPBackend.MATH):
            return model(ids)

    @torch.no_grad()
    def after_step(self, model: nn.Module, factor: float) -> None:
        """Bound what makes queries and keys.

        They have no norms here: Muon would let them grow until every query saw one key.
        """
        for name, param in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                param.mul_((MAX_RMS / param.square().mean().sqrt()).clamp(max=1.0))

    def decode(self, model: nn.Module, prompt: list[int]) -> tuple[list[int], int]:
        """LLaDA's `generate` by Fast-dLLM's threshold, uncached; cut after EOS."""
        tokens, forwards = generate(
            model,
            prompt,
            GEN_LENGTH,
            BLOCK,
            mask_id=tokenizer.MASK_ID,
            threshold=THRESHOLD,
        )
        end = [*tokens, tokenizer.EOS_ID].index(tokenizer.EOS_ID)
        return tokens[: end + 1], forwards
