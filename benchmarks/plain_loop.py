"""The yardstick: SDAR's block-diffusion loop with a KV cache, in plain PyTorch.

What a researcher's single-request script does, on transformers' Qwen3 (SDAR has its
weights): prefill whole blocks of the prompt, denoise block by block against the cache,
and one more forward per block to store its final keys and values.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoints import SHAPE
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import DynamicCache


@dataclass
class Result:
    tokens: list[int]
    forwards: int


class PlainLoop:
    def __init__(self, checkpoint: Path, block: int, mask_token_id: int) -> None:
        self.block = block
        self.mask = mask_token_id
        with torch.device("meta"):
            model = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
        model = model.to_empty(device="cpu").to(torch.bfloat16)
        # to_empty loses the rotary table, which is no weight.
        fresh = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).model.rotary_emb
        model.model.rotary_emb = fresh
        model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
        model.tie_weights()
        self.model = model.eval()

    def _forward(
        self, ids: torch.Tensor, cache: DynamicCache, keep: bool
    ) -> torch.Tensor:
        """Logits of `ids` [1, n] after the cache; the cache grows only if `keep`.

        All of a block sees all of it and everything before: no mask at all.
        """
        past = cache.get_seq_length()
        positions = torch.arange(past, past + ids.shape[1]).unsqueeze(0)
        total = past + ids.shape[1]
        visible = torch.ones(1, 1, ids.shape[1], total, dtype=torch.bool)
        if ids.shape[1] > self.block:  # several prompt blocks: block-causal
            row = torch.arange(past, total) // self.block
            column = torch.arange(total) // self.block
            visible = (column <= row.unsqueeze(1)).view(1, 1, -1, total)
        logits = self.model(
            ids, attention_mask=visible, position_ids=positions, past_key_values=cache
        ).logits
        if not keep:
            cache.crop(past)
        return logits[0]

    @torch.inference_mode()
    def generate(
        self, prompt: list[int], max_tokens: int, threshold: float, steps: int
    ) -> Result:
        """Greedy, with the dynamic rule: all above the threshold, or the quota."""
        block, mask = self.block, self.mask
        cache = DynamicCache()
        forwards = 0
        whole = len(prompt) // block * block
        if whole:
            self._forward(torch.tensor([prompt[:whole]]), cache, keep=True)
            forwards += 1
        tokens = list(prompt[:whole])
        canvas = torch.tensor(prompt[whole:], dtype=torch.int64)
        quota = [block // steps + (k < block % steps) for k in range(steps)]
        while len(tokens) < len(prompt) + max_tokens:
            x = torch.full((block,), mask)
            x[: len(canvas)] = canvas
            canvas = canvas[:0]
            for k in range(steps):
                masked = x == mask
                if not masked.any():
                    break
                logits = self._forward(x.unsqueeze(0), cache, keep=False).float()
                forwards += 1
                logits[:, mask] = -torch.inf
                confidence, token = logits.softmax(-1).max(-1)
                confidence[~masked] = -torch.inf
                chosen = confidence > threshold
                count = min(quota[k], int(masked.sum()))
                if int(chosen.sum()) < count:
                    chosen = torch.zeros(block, dtype=torch.bool)
                    chosen[confidence.topk(count).indices] = True
                x[chosen] = token[chosen]
            self._forward(x.unsqueeze(0), cache, keep=True)
            forwards += 1
            tokens += x.tolist()
        answer = tokens[len(prompt) : len(prompt) + max_tokens]
        return Result(answer, forwards)
