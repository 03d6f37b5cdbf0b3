"""tiny-llada2: a LLaDA2-MoE trained with block diffusion on the absolute grid."""

from random import Random
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.llada2_generate import generate
from tests.reference.llada2_moe import LLaDA2Config, LLaDA2Moe, SparseMoE
from tests.reference.masks import block_causal
from tools.tiny import tokenizer
from tools.tiny.recipe import Recipe
from tools.tiny.rows import Flags, Places, Row, Stage, random_masks, shares

BLOCK = 32
BIAS_RATE = 2e-3
STEPS, THRESHOLD, GEN_LENGTH = 32, 0.95, 128
NOISY_BLOCKS = 4


class LLaDA2Recipe(Recipe):
    """Rows end with the block to be noised: a row cannot see later blocks."""

    model_class, config_class = LLaDA2Moe, LLaDA2Config
    config: ClassVar = {
        "architectures": ["LLaDA2MoeModelLM"],
        "model_type": "llada2_moe",
        "use_qkv_bias": False,
        "use_qk_norm": True,
        "use_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "num_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "router_dtype": "fp32",
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "norm_head": False,
        "mask_token_id": tokenizer.MASK_ID,
        "eos_token_id": tokenizer.EOS_ID,
        "pad_token_id": tokenizer.EOS_ID,
        "block_size": BLOCK,
        "vocab_size": tokenizer.VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 96,
        "max_position_embeddings": 2048,
    }
    # Pointing at the prompt (reverse, copy, upper) is learned in the first stage. What
    # then remains is the values of digits: it is learned sooner from more sums, some
    # tiny, from worksheets of sums, and from answers known up to some point. The last
    # two stages take that back to the chat frame and to sorting, which needs the
    # values first.
    stages = (
        Stage(0, shares(1.3, 1.3, 1.0, 1.4, 1.0, 1.0)),
        Stage(2, shares(2.0, 2.0, 0.35, 2.0, 0.5, 0.45), easy_share=0.3),
        Stage(3, shares(1.2, 1.2, 0.35, 2.0, 0.5, 0.45), 0.3, 0.45, suffix_share=0.4),
        Stage(5, shares(1.2, 1.2, 0.5, 3.0, 0.6, 0.6), 0.2, 0.35, suffix_share=0.4),
        Stage(6, shares(2.2, 2.8, 0.5, 3.0, 0.7, 0.7), 0.1, 0.08, suffix_share=0.4),
    )
    residual_writers = ("dense.weight", "down_proj", "down_proj.weight")

    def row(self, rng: Random, prompt: list[int], answer: list[int]) -> Row:
        """Up to the end of one block with answer tokens, the one that is noised."""
        start = len(prompt)
        block = rng.randint(start // BLOCK, (start + len(answer)) // BLOCK)
        first = max(start, block * BLOCK)
        return Row.of(prompt, answer, first, (block + 1) * BLOCK)

    def logits(self, model: nn.Module, ids: Tensor) -> Tensor:
        """ids: [rows, length] -> [rows, length, vocab], blocks causal."""
        return model(ids, block_causal(ids.shape[1], BLOCK))

    @torch.no_grad()
    def after_step(self, model: nn.Module, factor: float) -> None:
        """Raise the bias of under-used experts, lower that of over-used ones."""
        for module in model.modules():
            if isinstance(module, SparseMoE):
                load = module.expert_load.float()
                shift = BIAS_RATE * factor * (load.mean() - load).sign()
                module.gate.expert_bias += shift

    def decode(self, model: nn.Module, prompt: list[int]) -> tuple[list[int], int]:
        """LLaDA2's `generate`."""
        return generate(
            model,
            prompt,
            GEN_LENGTH,
            BLOCK,
            STEPS,
            THRESHOLD,
            tokenizer.MASK_ID,
            tokenizer.EOS_ID,
        )


class LongLLaDA2Recipe(LLaDA2Recipe):
    """What a trained checkpoint learns further: long answers, of which up to
    NOISY_BLOCKS blocks are noised at once, as several blocks in flight are."""

    stages = (
        Stage(
            0,
            shares(3.0, 3.4, 0.6, 3.2, 0.9, 0.9),
            suffix_share=0.4,
            long_share=0.3,
            long_weights=(0.2, 0.3, 1.0),
        ),
    )
    decay_from = 0.25

    def row(self, rng: Random, prompt: list[int], answer: list[int]) -> Row:
        """As one block's, with noise from some blocks earlier on."""
        start = len(prompt)
        blocks = range(start // BLOCK, (start + len(answer)) // BLOCK + 1)
        last = rng.choice(blocks)
        first = max(start, (last - rng.randrange(NOISY_BLOCKS)) * BLOCK)
        return Row.of(prompt, answer, first, (last + 1) * BLOCK)

    def masks(
        self, maskable: Flags, end: Places, noise: np.random.Generator, stage: Stage
    ) -> Flags:
        """`random_masks` where one block is noised; else any share of the first, and
        shares of those behind it that grow from block to block."""
        masked = random_masks(maskable, end, noise, stage.suffix_share)
        count, length = maskable.shape
        block = np.arange(length) // BLOCK
        first = maskable.argmax(1) // BLOCK
        several = (first < block[-1])[:, None]
        share = np.sort(noise.random((count, block[-1] + 1)), axis=1)
        # Mostly the blocks behind the front are hardly begun.
        share = 1 - (1 - share) * noise.random((count, 1))
        front = noise.random((count, 1))
        share = np.where(np.arange(block[-1] + 1) <= first[:, None], front, share)
        growing = maskable & (noise.random((count, length)) < share[:, block])
        return np.where(several, growing, masked)
