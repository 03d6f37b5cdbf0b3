"""A second yardstick for full attention: the authors' loops on LLaDA, made lean.

What is left of LLaDA's `generate` and Fast-dLLM's prefix and dual caches at batch 1
when logits are computed of the block's rows alone, which theirs compute of all rows:
torch's own linear layers and attention, keys and values written in place. Written from
the description of the algorithms. As in our server, a block is left as soon as it is
decoded, the mask is no candidate, and probabilities are float32.
"""

import json
from pathlib import Path

import torch
from plain_loop import Result
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional


class LeanLoop:
    def __init__(self, checkpoint: Path) -> None:
        self.config = json.loads((checkpoint / "config.json").read_text())
        self.mask = self.config["mask_token_id"]
        self.heads = self.config["n_heads"]
        weights = load_file(checkpoint / "model.safetensors")
        prefix = "model.transformer."
        self.weights = {k.removeprefix(prefix): v for k, v in weights.items()}
        self.layers = [
            {
                name.removeprefix(f"blocks.{layer}.").removesuffix(".weight"): weight
                for name, weight in self.weights.items()
                if name.startswith(f"blocks.{layer}.")
            }
            for layer in range(self.config["n_layers"])
        ]
        head_dim = self.config["d_model"] // self.heads
        frequency = self.config["rope_theta"] ** -(
            torch.arange(0, head_dim, 2).float() / head_dim
        )
        length = self.config["max_sequence_length"]
        angles = torch.arange(length).float()[:, None] * frequency
        self.cos = angles.cos().repeat(1, 2).bfloat16()
        self.sin = torch.cat((-angles.sin(), angles.sin()), dim=1).bfloat16()

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        eps = self.config["rms_norm_eps"]
        return functional.rms_norm(hidden, weight.shape, weight, eps)

    def _heads(self, rows: Tensor) -> Tensor:
        """[length, hidden] -> [heads, length, head_dim]."""
        return rows.view(len(rows), self.heads, -1).transpose(0, 1)

    def _forward(
        self, ids: Tensor, start: int, cache: Tensor | None, rows: slice
    ) -> Tensor:
        """Logits of `rows` of `ids`, which lie at positions from `start` on.

        Args:
            ids: [length] int64.
            cache: [layers, 2, heads, total, head_dim], takes the keys and values of
                these positions and is what they attend to; None if they are all.

        Returns:
            [rows, vocab] float32.
        """
        span = slice(start, start + len(ids))
        cos, sin = self.cos[span], self.sin[span]

        def rotate(heads: Tensor) -> Tensor:
            half = heads.shape[-1] // 2
            return heads * cos + heads.roll(half, dims=-1) * sin

        hidden = functional.embedding(ids, self.weights["wte.weight"])
        for layer, weight in enumerate(self.layers):
            normed = self._norm(hidden, weight["attn_norm"])
            query, key, value = (
                self._heads(functional.linear(normed, weight[name]))
                for name in ("q_proj", "k_proj", "v_proj")
            )
            query, key = rotate(query), rotate(key)
            if cache is not None:
                cache[layer, 0, :, span], cache[layer, 1, :, span] = key, value
                key, value = cache[layer]
            mixed = functional.scaled_dot_product_attention(
                query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            )
            mixed = mixed[0].transpose(0, 1).reshape(hidden.shape)
            hidden = hidden + functional.linear(mixed, weight["attn_out"])
            normed = self._norm(hidden, weight["ff_norm"])
            gate = functional.silu(functional.linear(normed, weight["ff_proj"]))
            inner = gate * functional.linear(normed, weight["up_proj"])
            hidden = hidden + functional.linear(inner, weight["ff_out"])
        hidden = self._norm(hidden[rows], self.weights["ln_f.weight"])
        return functional.linear(hidden, self.weights["ff_out.weight"]).float()

    @torch.inference_mode()
    def generate(
        self,
        prompt: list[int],
        max_tokens: int,
        block: int,
        cache: str,
        steps: int | None = None,
        threshold: float | None = None,
    ) -> Result:
        """Greedy; `cache` is "none", "prefix" or "dual".

        With `threshold` every candidate at least so probable and the surest one;
        otherwise the surest ones in equal parts over `steps`, which are those of the
        whole answer.
        """
        total = len(prompt) + max_tokens
        x = torch.full((total,), self.mask)
        x[: len(prompt)] = torch.tensor(prompt)
        kept = None
        if cache != "none":
            head_dim = self.config["d_model"] // self.heads
            shape = (len(self.layers), 2, self.heads, total, head_dim)
            kept = torch.empty(shape, dtype=self.cos.dtype)
        steps = (steps or max_tokens) // (max_tokens // block)
        quota = [block // steps + (k < block % steps) for k in range(steps)]
        forwards = 0
        for start in range(len(prompt), total, block):
            end = start + block
            masked = torch.ones(block, dtype=torch.bool)
            first, last, step = 0, total, 0
            while masked.any():
                rows = slice(start - first, end - first)
                logits = self._forward(x[first:last], first, kept, rows)
                forwards += 1
                logits[:, self.mask] = -torch.inf
                confidence, token = logits.softmax(-1).max(-1)
                confidence[~masked] = -torch.inf
                if threshold is None:
                    chosen = torch.zeros_like(masked)
                    chosen[confidence.topk(quota[step]).indices] = True
                else:
                    chosen = confidence >= threshold
                    chosen[confidence.argmax()] = True
                step += 1
                x[start:end][chosen] = token[chosen]
                masked &= ~chosen
                if cache != "none":
                    first = start
                    last = end if cache == "dual" else total
        return Result(x[len(prompt) :].tolist(), forwards)
