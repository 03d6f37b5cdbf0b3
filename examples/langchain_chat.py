"""LangChain's ChatOpenAI: decoding parameters for a model, or for one call.

    make serve                                   # in another terminal
    pip install langchain-openai
    python examples/langchain_chat.py "Uppercase: hello."

Prints an answer with its cost, a streamed one, and those of a chain.
"""

import argparse

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default="Uppercase: hello.")
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    parser.add_argument("--model", default="tiny-llada2")
    parser.add_argument("--api-key", default="none", help="`vllm serve --api-key`")
    args = parser.parse_args()

    chat = ChatOpenAI(
        model=args.model,
        base_url=args.base_url,
        api_key=args.api_key,
        temperature=0,
        max_tokens=64,
        extra_body={"dllm_algorithm": "threshold", "dllm_threshold": 0.9},
    )
    answer = chat.invoke(args.question)
    print("invoke: ", answer.content)
    # LangChain keeps the server's own usage here, with its extra fields.
    usage = answer.response_metadata["token_usage"]
    print("usage:  ", f"nfe {usage['nfe']}, per forward {usage['tokens_per_forward']}")

    one_by_one = chat.bind(extra_body={"dllm_algorithm": "sequential"})
    print("stream: ", end=" ")
    for piece in one_by_one.stream(args.question):
        print(piece.content, end="|", flush=True)
    print()

    chain = ChatPromptTemplate.from_messages([("user", "Reverse: {numbers}.")]) | chat
    answers = chain.batch([{"numbers": "12 30 77"}, {"numbers": "41 25 63 90"}])
    print("chain:  ", *(each.content for each in answers), sep="  ")


if __name__ == "__main__":
    main()
