"""How often a grammar fixes what follows a choice, whatever is chosen.

    python benchmarks/certain.py
    python benchmarks/certain.py --tight

Random answers to the ten schemas (schemas.py), as xgrammar reads them. At each choice:
whether the position behind it, or two or three further on, has one token allowed, and
the same one whatever stands before it. Such a token could be written right of a mask.
"""

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from schemas import SCHEMAS
from vllm.tokenizers import get_tokenizer
from xgrammar import (
    GrammarCompiler,
    GrammarMatcher,
    TokenizerInfo,
    allocate_token_bitmask,
)

AHEAD = (1, 2, 3)
MOST = 400
"""Tokens allowed at a choice, above which nothing behind it is looked at."""


class Answers:
    def __init__(self, model: str, seed: int) -> None:
        tokenizer = get_tokenizer(model)
        self.info = TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
        self.compiler = GrammarCompiler(self.info)
        self.random = random.Random(seed)
        self.bits = allocate_token_bitmask(1, len(tokenizer))

    def allowed(self, matcher: GrammarMatcher) -> list[int]:
        matcher.fill_next_token_bitmask(self.bits)
        flags = np.unpackbits(self.bits.numpy().view(np.uint8), bitorder="little")
        found: list[int] = flags.nonzero()[0].tolist()
        return found

    def certain(self, matcher: GrammarMatcher, ahead: int) -> int | None:
        """The one token that may stand so far ahead; None if there are others."""
        some, found = self.allowed(matcher), set[int | None]()
        if not ahead:
            return some[0] if len(some) == 1 else None
        for token in some if len(some) <= MOST else []:
            matcher.accept_token(token)
            is_over = matcher.is_terminated()
            found.add(None if is_over else self.certain(matcher, ahead - 1))
            matcher.rollback()
            if len(found) > 1 or None in found:
                return None
        return found.pop() if found else None

    def counts(self, schema: str, tight: bool) -> list[int]:
        """Of one answer: its choices, and those that fix a token 1, 2, ... ahead."""
        separators = (",", ":") if tight else None
        grammar = self.compiler.compile_json_schema(
            schema, any_whitespace=not tight, separators=separators
        )
        matcher, found = GrammarMatcher(grammar), [0] * (1 + len(AHEAD))
        while not matcher.is_terminated():
            some = self.allowed(matcher)
            if len(some) > 1 and not matcher.find_jump_forward_string():
                found[0] += 1
                for place, ahead in enumerate(AHEAD, start=1):
                    found[place] += self.certain(matcher, ahead) is not None
            texts = self.info.decoded_vocab
            said = [token for token in some if texts[token].strip()]
            matcher.accept_token(self.random.choice(said or some))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/tiny-llada2", help="its tokenizer")
    parser.add_argument("--tight", action="store_true", help="no white space")
    parser.add_argument("--count", type=int, default=5, help="answers to a schema")
    args = parser.parse_args()
    answers = Answers(args.model, seed=0)
    print("| schema | choices | 1 ahead | 2 | 3 |")
    for name, schema in SCHEMAS.items():
        text = json.dumps(schema)
        some = [answers.counts(text, args.tight) for _ in range(args.count)]
        print("|", name, *(f"| {count}" for count in map(sum, zip(*some, strict=True))))


if __name__ == "__main__":
    main()
