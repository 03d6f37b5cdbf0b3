"""D2F requests, and their answers: the golden ones, and random ones."""

import json
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from tests.golden_cases import GOLDEN, MASK, Model, reference_model
from tests.reference.d2f_generate import D2FWishes, generate
from tests.reference.dream import Dream


@dataclass(frozen=True)
class D2FCase:
    """One greedy request, and its answer."""

    prompt: list[int]
    gen_length: int
    wishes: D2FWishes
    tokens: list[int]
    nfe: int | None
    """Forwards until the answer was there; None if nobody knows."""
    stop_token_ids: list[int] | None = None

    @property
    def ignore_eos(self) -> bool:
        return True

    @property
    def fields(self) -> dict[str, Any]:
        """The request's `dllm_*` fields."""
        return {
            "dllm_algorithm": "d2f",
            "dllm_block_length": self.wishes.block,
            "dllm_threshold": self.wishes.threshold,
            "dllm_add_block_threshold": self.wishes.add_block,
            "dllm_semi_complete_threshold": self.wishes.semi_complete,
        }

    @property
    def sampling(self) -> dict[str, Any]:
        """Parameters of vLLM that it has besides."""
        return {"stop_token_ids": self.stop_token_ids} if self.stop_token_ids else {}

    def may_take(self, forwards: int) -> bool:
        return self.nfe in (None, forwards)


@cache
def d2f_cases(checkpoint: str) -> list[D2FCase]:
    """The golden ones: the authors' own loop."""
    family = checkpoint.removesuffix("-pub0")
    lines = (GOLDEN / f"{family}-d2f-pub0" / "cases.jsonl").read_text().splitlines()
    cases = []
    for case in map(json.loads, lines):
        assert case["checkpoint"] == checkpoint
        wishes = D2FWishes(
            case["block_length"],
            case["accept"],
            case["add_block"],
            case["semi_complete"],
        )
        request = (case["prompt"], case["gen_length"], wishes)
        answer = (case["tokens"], case["nfe"], case.get("stop_token_ids"))
        cases.append(D2FCase(*request, *answer))
    return cases


def random_d2f_case(
    checkpoint: str,
    seed: int,
    model: Model | None = None,
    max_len: int | None = None,
) -> D2FCase:
    """One of any parameters, answered by the reference, or by another `model`."""
    draw = Random(f"{checkpoint} {seed}")
    wishes = D2FWishes(
        block=draw.choice((1, 3, 4, 8, 16, 32)),
        threshold=draw.choice((0.05, 0.15, 0.3, 0.6, 1.0)),
        add_block=draw.choice((0.05, 0.1, 0.25, 0.5, 0.9, 1.0)),
        semi_complete=draw.choice((0.1, 0.25, 0.5, 0.9, 0.95, 1.0)),
    )
    prompt = [draw.randrange(2, MASK) for _ in range(draw.randint(1, 40))]
    gen_length = draw.randint(1, 3 * wishes.block + 20)
    return answered(checkpoint, prompt, gen_length, wishes, model, max_len)


def answered(
    checkpoint: str,
    prompt: list[int],
    gen_length: int,
    wishes: D2FWishes,
    model: Model | None = None,
    max_len: int | None = None,
) -> D2FCase:
    model = model or reference_model(checkpoint)
    shift = int(isinstance(model, Dream))
    tokens, nfe = generate(model, prompt, gen_length, wishes, MASK, shift, max_len)
    return D2FCase(prompt, gen_length, wishes, tokens, nfe)
