"""The official OpenAI client: chat, streams, decoding parameters, seed, logprobs, JSON.

    make serve                                   # in another terminal
    pip install openai
    python examples/openai_client.py "Solve: 12 + 30."

`nfe` is the number of forwards that an answer took.
"""

import argparse
import math

from openai import OpenAI

QUESTION = "Solve: 12 + 30."
SCHEMA = {
    "type": "object",
    "properties": {"result": {"type": "integer"}},
    "required": ["result"],
    "additionalProperties": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--api-key", default="none", help="`vllm serve --api-key`")
    args = parser.parse_args()

    client = OpenAI(base_url=args.base_url, api_key=args.api_key)
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": args.question}]

    # A plain request. The usage says how many forwards the answer took.
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=64
    )
    print("answer:     ", answer.choices[0].message.content)
    print("usage:      ", cost(answer.usage))

    # Fields that OpenAI does not have go in extra_body. One token per forward:
    slow = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=64,
        extra_body={"dllm_algorithm": "sequential"},
    )
    print("sequential: ", slow.choices[0].message.content)
    print("usage:      ", cost(slow.usage))

    # Tokens stream as soon as they can no longer change; the last chunk has the usage.
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"dllm_algorithm": "low_confidence", "dllm_steps": 16},
    )
    print("streamed:   ", end=" ")
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="|", flush=True)
        if chunk.usage:
            print("\nusage:      ", cost(chunk.usage))

    # The same seed gives the same answer, whatever else the server is doing.
    drawn = [
        client.chat.completions.create(
            model=model, messages=messages, max_tokens=64, temperature=1.5, seed=7
        )
        for _ in range(2)
    ]
    print("seed 7:     ", *(repr(each.choices[0].message.content) for each in drawn))

    # How sure the model was of each token when it chose it.
    scored = client.chat.completions.create(
        model=model, messages=messages, max_tokens=64, logprobs=True, top_logprobs=1
    )
    print("confidence: ", end=" ")
    for token in scored.choices[0].logprobs.content:
        print(f"{token.token!r} {math.exp(token.logprob):.3f}", end="  ")
    print()

    # An answer that follows a schema.
    structured = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"{args.question} Answer in JSON."}],
        max_tokens=64,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": SCHEMA},
        },
    )
    print("JSON:       ", structured.choices[0].message.content)


def cost(usage) -> str:
    return (
        f"completion_tokens {usage.completion_tokens}, nfe {usage.nfe}, "
        f"tokens_per_forward {usage.tokens_per_forward}"
    )


if __name__ == "__main__":
    main()
