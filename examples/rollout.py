"""A loop of reinforcement learning: generate, score, new weights in place, generate.

    source tools/cpu_env.sh                      # on a CPU
    python examples/rollout.py --rounds 4

Evolution strategies, because they need no trainer: a round tries weights with a little
noise on them, and keeps them if they are rewarded at least as well. The engine stays
up; what a round costs is one `reload_weights`, which also forgets the keys of the old
ones. With a trainer it is the trainer that writes the file; on GPUs vLLM's weight
transfer (`--weight-transfer-config`) takes its place.
"""

import argparse
import random
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from vllm import LLM, SamplingParams

MODEL = Path(__file__).parents[1] / "models" / "tiny-llada2"
Weights = dict[str, torch.Tensor]


def tasks(count: int, seed: int) -> dict[str, str]:
    """Questions, and their answers."""
    draw = random.Random(seed)
    pairs = [(draw.randint(10, 99), draw.randint(10, 99)) for _ in range(count)]
    return {f"Solve: {a} + {b}.": f"{a} + {b} = {a + b}" for a, b in pairs}


def reward(llm: LLM, questions: dict[str, str], samples: int) -> float:
    """The share of right answers, and one batch of roll-outs."""
    params = SamplingParams(temperature=0.7, n=samples, max_tokens=32, seed=0)
    chats = [[{"role": "user", "content": question}] for question in questions]
    outputs = llm.chat(chats, params, use_tqdm=False)
    right = [
        answer.text == wanted
        for output, wanted in zip(outputs, questions.values(), strict=True)
        for answer in output.outputs
    ]
    return sum(right) / len(right)


def noisy(weights: Weights, size: float, seed: int) -> Weights:
    """The same with noise, `size` times as large as the weights of its tensor."""
    generator = torch.Generator().manual_seed(seed)
    tried = dict(weights)
    for name, weight in weights.items():
        if weight.dim() > 1:
            noise = torch.randn(weight.shape, generator=generator)
            tried[name] = weight + size * weight.std() * noise
    return tried


def give(llm: LLM, weights: Weights, folder: Path) -> None:
    """Put the weights into the running engine."""
    save_file(weights, folder / "model.safetensors")
    path = str(folder)
    llm.collective_rpc("reload_weights", kwargs={"weights_path": path})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4, help="answers a question")
    parser.add_argument("--noise", type=float, default=0.02)
    args = parser.parse_args()

    questions = tasks(args.questions, seed=1)
    weights = load_file(args.model / "model.safetensors")
    llm = LLM(str(args.model), dtype="float32", enforce_eager=True)
    best = reward(llm, questions, args.samples)
    print(f"start: reward {best:.3f}")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for number in range(args.rounds):
            tried = noisy(weights, args.noise, seed=number)
            give(llm, tried, Path(folder))
            found = reward(llm, questions, args.samples)
            kept = found >= best
            if kept:
                weights, best = tried, found
            print(f"round {number}: reward {found:.3f}{', kept' if kept else ''}")
        give(llm, weights, Path(folder))
    print(f"end: reward {reward(llm, questions, args.samples):.3f}")


if __name__ == "__main__":
    main()
