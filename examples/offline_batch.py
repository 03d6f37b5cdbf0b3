"""Offline: a list of prompts in one batch, each with its own decoding rule.

    source tools/cpu_env.sh                      # on a CPU
    python examples/offline_batch.py             # built-in prompts
    python examples/offline_batch.py --prompts examples/questions.txt --rules threshold

`vllm serve` is not needed: the engine runs in this process and its children.
"""

import argparse
from pathlib import Path

from vllm import LLM, SamplingParams

from vllm_dllm.serving.usage import forwards_of

MODEL = Path(__file__).parents[1] / "models" / "tiny-llada2"
PROMPTS = ["Solve: 12 + 30.", "Reverse: 12 30 77.", "Sort: 77 12 30.", "Copy: hello."]
RULES = {
    "threshold": {"dllm_algorithm": "threshold", "dllm_threshold": 0.9},
    "low_confidence": {"dllm_algorithm": "low_confidence", "dllm_steps": 16},
    "factor": {"dllm_algorithm": "factor", "dllm_factor": 1.0},
    "sequential": {"dllm_algorithm": "sequential"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--prompts", type=Path, help="a file with a question per line")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()

    prompts = args.prompts.read_text().splitlines() if args.prompts else PROMPTS
    prompts = [line for line in prompts if line.strip()]
    # The rules in turn: requests with different ones share the steps of one batch.
    rules = [args.rules[i % len(args.rules)] for i in range(len(prompts))]
    params = [
        SamplingParams(
            temperature=0, max_tokens=args.max_tokens, extra_args=dict(RULES[rule])
        )
        for rule in rules
    ]
    # With log stats, vLLM counts the forwards of every request. Without torch.compile
    # it starts in seconds; drop `enforce_eager` for a long run.
    llm = LLM(args.model, disable_log_stats=False, enforce_eager=True)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    outputs = llm.chat(chats, params, use_tqdm=True)  # in the order of the prompts

    for prompt, rule, output in zip(prompts, rules, outputs, strict=True):
        [answer] = output.outputs
        forwards = forwards_of(output)
        cost = f"{len(answer.token_ids)} tokens, {forwards.all} forwards"
        print(f"{prompt} -> {answer.text}    [{rule}: {cost}]")


if __name__ == "__main__":
    main()
