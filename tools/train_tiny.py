"""Train the tiny LLaDA2-MoE checkpoint on one CPU core with block diffusion.

    python tools/train_tiny.py --out models/tiny-llada2 --seed 0 --steps 5400

The learning rate follows the step count, so a seed and `--steps` decide the result;
with `--minutes` it follows the clock (given both, whichever is further along).
An interrupted run continues from its last state when started again with `--state`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.reference.llada2_moe import LLaDA2Config, LLaDA2Moe, SparseMoE
from tests.reference.masks import block_causal
from tools.tiny import batches, tokenizer
from tools.tiny.local_eval import evaluate
from tools.tiny.muon import Muon

WARM_UP_STEPS = 100
DECAY_FROM = 0.6
PADDING_WEIGHT = 0.2
MUON_LR, ADAM_LR = 0.02, 4e-3
BIAS_RATE = 2e-3
CONFIG = {
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
    "block_size": batches.BLOCK,
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


def initialise(model: LLaDA2Moe) -> None:
    """Normal weights, smaller where a layer writes into the residual stream."""
    depth = (2 * model.config.num_hidden_layers) ** -0.5
    for name, param in model.named_parameters():
        if param.dim() > 1:
            writes = name.endswith(("dense.weight", "down_proj", "down_proj.weight"))
            torch.nn.init.normal_(param, std=0.05 * (depth if writes else 1.0))


def make_optimizers(model: LLaDA2Moe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, head, router and norms."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, param in model.named_parameters():
        inner = ".layers." in name and ".gate.weight" not in name
        (matrices if inner and param.dim() > 1 else others).append(param)
    return [
        Muon(matrices, lr=MUON_LR, momentum=0.95, decay=0.01),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, progress: float) -> float:
    """Warm-up, flat, then linear decay to zero; progress in 0..1."""
    warm_up = step / WARM_UP_STEPS + 1e-3
    return min(1.0, warm_up, (1 - progress) / (1 - DECAY_FROM))


def loss_of(model: LLaDA2Moe, batch: batches.Batch) -> tuple[Tensor, float]:
    """Cross entropy over masked positions: the weighted loss, and the unpadded mean."""
    noisy = batch.ids.masked_fill(batch.masked, tokenizer.MASK_ID)
    logits = model(noisy, block_causal(noisy.shape[1], batches.BLOCK))[batch.masked]
    losses = functional.cross_entropy(logits, batch.ids[batch.masked], reduction="none")
    padding = batch.padding[batch.masked]
    weights = torch.where(padding, PADDING_WEIGHT, 1.0)
    answer = losses.detach()[~padding].mean().item()
    return (losses * weights).sum() / weights.sum(), answer


@torch.no_grad()
def balance(model: LLaDA2Moe, step_size: float) -> None:
    """Raise the bias of under-used experts, lower that of over-used ones."""
    for module in model.modules():
        if isinstance(module, SparseMoE):
            load = module.expert_load.float()
            module.gate.expert_bias += step_size * (load.mean() - load).sign()


class Trainer:
    """The run's state; `pool` and `index` name the next batch."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.model = LLaDA2Moe(LLaDA2Config.from_dict(CONFIG))
        initialise(self.model)
        self.optimizers = make_optimizers(self.model)
        self.bases = [opt.param_groups[0]["lr"] for opt in self.optimizers]
        self.step, self.pool, self.index, self.seconds = 0, 0, 0, 0.0
        if args.state and args.state.exists():
            self.load()

    def load(self) -> None:
        """Continue from the last saved state."""
        state = torch.load(self.args.state)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.pool, self.index, self.seconds = state["at"]

    def save(self) -> None:
        """Write the state in one move, so that a kill leaves the older one whole."""
        if not self.args.state:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "at": (self.step, self.pool, self.index, self.seconds),
        }
        partial = self.args.state.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(self.args.state)

    def progress(self) -> float:
        """0..1, by steps or by the clock, whichever is further."""
        by_steps = self.step / self.args.steps if self.args.steps else 0.0
        by_clock = self.seconds / self.args.minutes / 60 if self.args.minutes else 0.0
        return max(by_steps, by_clock)

    def update(self, batch: batches.Batch) -> float:
        """One optimiser step; the mean loss of masked answer tokens."""
        factor = rate(self.step, self.progress())
        loss, answer = loss_of(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, base in zip(self.optimizers, self.bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad()
        balance(self.model, BIAS_RATE * factor)
        return answer

    def run(self) -> float:
        """Train to the end; the mean answer loss of the last 100 steps."""
        recent: list[float] = []
        last_save = last_eval = self.seconds
        while True:
            pool = batches.pool_batches(self.args.seed, self.pool, self.args.tokens)
            started = time.perf_counter() - self.seconds
            for index, batch in enumerate(pool):
                if index < self.index:
                    continue
                recent = [*recent[-99:], self.update(batch)]
                self.step, self.index = self.step + 1, index + 1
                self.seconds = time.perf_counter() - started
                if self.step % 100 == 0:
                    loss = sum(recent) / len(recent)
                    print(f"{self.step} {self.seconds:.0f}s {loss:.5f}", flush=True)
                if self.progress() >= 1:
                    return sum(recent) / len(recent)
                if self.seconds - last_save > 180:
                    last_save = self.seconds
                    self.save()
                if self.seconds - last_eval > self.args.eval_minutes * 60:
                    last_eval = self.seconds
                    self.report(40)
                    started = time.perf_counter() - self.seconds
            self.pool, self.index = self.pool + 1, 0

    def report(self, count: int) -> None:
        """Print held-out accuracy and tokens per forward, per skill."""
        table = evaluate(self.model, count, seed=1234)
        for skill, row in table.items():
            exact, speed = row["exact"], row["tokens_per_forward"]
            print(f"  {skill:9} {exact:.3f} {speed:.2f}", flush=True)


def main() -> None:
    """Train, then write the bfloat16 checkpoint and the training record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--tokens", type=int, default=3072, help="per batch")
    parser.add_argument("--eval-minutes", type=float, default=8)
    parser.add_argument("--state", type=Path, help="file to save to and continue from")
    args = parser.parse_args()
    if not args.steps and not args.minutes:
        parser.error("give --steps or --minutes")
    torch.set_num_threads(1)
    trainer = Trainer(args)
    loss = trainer.run()
    trainer.save()
    tokenizer.save(args.out)
    trainer.model.save_pretrained(args.out, torch.bfloat16)
    generation = {
        "eos_token_id": tokenizer.EOS_ID,
        "pad_token_id": tokenizer.EOS_ID,
        "temperature": 0.0,
    }
    text = json.dumps(generation, indent=2) + "\n"
    (args.out / "generation_config.json").write_text(text)
    print(f"steps {trainer.step}, {trainer.seconds:.0f} s, answer loss {loss:.5f}")
    trainer.model = LLaDA2Moe.from_pretrained(args.out)
    trainer.report(100)


if __name__ == "__main__":
    main()
