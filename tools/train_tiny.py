r"""Train one of the tiny checkpoints on one CPU core with masked diffusion.

    python tools/train_tiny.py --out models/tiny-llada2 --seed 0 --steps 5400
    python tools/train_tiny.py --model llada --out models/tiny-llada --steps 8000
    python tools/train_tiny.py --model llada2-long --start models/tiny-llada2 \
        --out models/tiny-llada2-long --seed 1 --rate 0.7 --steps 2300

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
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.tiny import batches, skills, tokenizer
from tools.tiny.local_eval import evaluate
from tools.tiny.muon import Muon
from tools.tiny.recipe import Recipe, layer_of
from tools.tiny.recipes import RECIPES

WARM_UP_STEPS = 100
PADDING_WEIGHT = 0.2
MUON_LR, ADAM_LR = 0.02, 4e-3


def make_optimizers(recipe: Recipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, head, router and norms."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, param in model.named_parameters():
        inner = layer_of(name) is not None and ".gate.weight" not in name
        (matrices if inner and param.dim() > 1 else others).append(param)
    dtype = torch.bfloat16 if recipe.autocast else torch.float32
    return [
        Muon(matrices, lr=MUON_LR, momentum=0.95, decay=0.01, dtype=dtype),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, progress: float, decay_from: float) -> float:
    """Warm-up, flat, then linear decay to zero; progress in 0..1."""
    warm_up = step / WARM_UP_STEPS + 1e-3
    return min(1.0, warm_up, (1 - progress) / (1 - decay_from))


def loss_of(
    recipe: Recipe, model: nn.Module, batch: batches.Batch
) -> tuple[Tensor, float]:
    """Cross entropy over masked positions: the weighted loss, and the unpadded mean."""
    noisy = batch.ids.masked_fill(batch.masked, tokenizer.MASK_ID)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
        logits = recipe.logits(model, noisy)[batch.masked].float()
    losses = functional.cross_entropy(logits, batch.ids[batch.masked], reduction="none")
    padding = batch.padding[batch.masked]
    weights = torch.where(padding, PADDING_WEIGHT, 1.0)
    answer = losses.detach()[~padding].mean().item()
    return (losses * weights).sum() / weights.sum(), answer


class Trainer:
    """The run's state; `pool` and `index` name the next batch."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.recipe = RECIPES[args.model]
        self.model = self.model_of(args.start)
        self.optimizers = make_optimizers(self.recipe, self.model)
        self.bases = [opt.param_groups[0]["lr"] for opt in self.optimizers]
        self.step, self.pool, self.index, self.seconds = 0, 0, 0, 0.0
        if args.state and args.state.exists():
            self.load()

    def model_of(self, start: Path | None) -> nn.Module:
        """A checkpoint's weights, or new ones."""
        if start:
            return self.recipe.load(start).train()
        model = self.recipe.build()
        self.recipe.initialise(model)
        return model

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
        factor = rate(self.step, self.progress(), self.recipe.decay_from)
        factor *= self.args.rate
        loss, answer = loss_of(self.recipe, self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, base in zip(self.optimizers, self.bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad()
        self.recipe.after_step(self.model, factor)
        return answer

    def run(self) -> float:
        """Train to the end; the mean answer loss of the last 100 steps."""
        recent: list[float] = []
        last_save = last_eval = self.seconds
        while True:
            pool = batches.pool_batches(
                self.recipe, self.args.seed, self.pool, self.args.tokens
            )
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
        table = evaluate(self.recipe, self.model, count, seed=1234)
        if self.recipe.stages[-1].long_share:
            names = tuple(skills.LONG_TASKS)
            table |= evaluate(self.recipe, self.model, count // 4, 1234, names)
        for skill, row in table.items():
            exact, speed = row["exact"], row["tokens_per_forward"]
            print(f"  {skill:12} {exact:.3f} {speed:.2f}", flush=True)


def main() -> None:
    """Train, then write the bfloat16 checkpoint and the training record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=RECIPES, default="llada2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--tokens", type=int, default=3072, help="per batch")
    parser.add_argument("--eval-minutes", type=float, default=8)
    parser.add_argument("--start", type=Path, help="checkpoint to train further")
    parser.add_argument("--rate", type=float, default=1.0, help="of learning; a factor")
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
    trainer.model = trainer.recipe.load(args.out)
    trainer.report(100)


if __name__ == "__main__":
    main()
