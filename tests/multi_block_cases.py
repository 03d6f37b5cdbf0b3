"""Cases of multi_bd: requests with several blocks in flight, and their answers."""

import json
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import torch

from tests.golden_cases import GOLDEN, MASK, LLaDA2Moe, Model, reference_model
from tests.reference.masks import block_causal
from tests.reference.multi_block_generate import Logits, Wishes, generate
from tests.reference.sdar import SDAR


@dataclass(frozen=True)
class BufferCase:
    """One greedy request, and its answer."""

    prompt: list[int]
    gen_length: int
    wishes: Wishes
    tokens: list[int]
    nfe: int
    """Forwards in which some block is decided."""
    most_forwards: int
    """And those that store KV alone."""
    stop_token_ids: list[int] | None = None
    trace: tuple[tuple[int, float], ...] = ()
    """Of each token: the step of its block that decided it, and the log of its
    probability. Of answers of the reference alone."""

    @property
    def ignore_eos(self) -> bool:
        return True

    @property
    def fields(self) -> dict[str, Any]:
        """The request's `dllm_*` fields."""
        wishes = self.wishes
        edits = wishes.edit_threshold is not None
        fields: dict[str, Any] = {
            "dllm_algorithm": "joint_threshold" if edits else "threshold",
            "dllm_threshold": wishes.threshold,
            "dllm_buffer_size": wishes.size,
        }
        if edits:
            fields["dllm_edit_threshold"] = wishes.edit_threshold
            fields["dllm_max_post_steps"] = wishes.max_post_steps
        if wishes.size > 1:
            fields["dllm_add_block_threshold"] = wishes.add_block
            fields["dllm_token_stability_threshold"] = wishes.token_stability
            if not edits:
                fields["dllm_semi_complete_threshold"] = wishes.semi_complete
        return fields

    def may_take(self, forwards: int) -> bool:
        """Whether a client may be told of so many.

        While the last block is kept from opening another one (token stability), the
        forward that stores it is a step like others for the scheduler.
        """
        if self.wishes.edit_threshold is None:
            return self.wishes.size == 1 or forwards == self.nfe
        return self.nfe <= forwards <= self.most_forwards

    @property
    def sampling(self) -> dict[str, Any]:
        """Parameters of vLLM that it has besides."""
        return {"stop_token_ids": self.stop_token_ids} if self.stop_token_ids else {}


@cache
def multi_block_cases(checkpoint: str, block: int) -> list[BufferCase]:
    """The golden ones, Diffulex's own answers.

    Editing with one block in flight is left out: here it is LLaDA2.1's own rule, which
    confirms a block in its last step and not in a further one.
    """
    family = checkpoint.removesuffix("-pub0").removesuffix("-pub1")
    lines = (GOLDEN / f"{family}-multi_bd-pub0" / "cases.jsonl").read_text()
    cases = []
    for line in lines.splitlines():
        case = json.loads(line)
        if (case["checkpoint"], case["block_length"]) != (checkpoint, block):
            continue
        wishes = Wishes(
            block=block,
            size=case["buffer_size"],
            threshold=case["accept"],
            add_block=case["add_block"],
            semi_complete=case["semi_complete"],
            token_stability=case["token_stability"],
            edit_threshold=case.get("edit"),
            max_post_steps=case.get("max_post_edit_steps", 16),
        )
        if wishes.size == 1 and wishes.edit_threshold is not None:
            continue
        request = (case["prompt"], case["gen_length"], wishes)
        forwards = (case["nfe_active"], case["nfe"])
        answer = (case["tokens"], *forwards, case.get("stop_token_ids"))
        cases.append(BufferCase(*request, *answer))
    return cases


def random_case(
    checkpoint: str, block: int, seed: int, model: Model | None = None
) -> BufferCase:
    """One of any parameters, answered by the reference, or by another `model`."""
    draw = Random(f"{checkpoint} {block} {seed}")
    edits = checkpoint.startswith("llada21") and draw.random() < 0.7
    wishes = Wishes(
        block=block,
        size=draw.choice((2, 3, 4, 16)),
        threshold=draw.choice((0.05, 0.2, 0.5, 0.9)),
        add_block=draw.choice((0.1, 0.25, 0.5, 0.75, 1.0)),
        semi_complete=draw.choice((0.1, 0.25, 0.75, 0.9, 1.0)),
        token_stability=draw.choice((0.0, 0.0, 0.5, 1.0)),
        edit_threshold=draw.choice((0.0, 0.1, 0.5)) if edits else None,
        max_post_steps=draw.choice((0, 2, 16)),
    )
    prompt = [draw.randrange(2, MASK) for _ in range(draw.randint(1, 3 * block))]
    gen_length = draw.randint(1, 4 * block + 3)
    logits = seen_by(model or reference_model(checkpoint), block)
    tokens, run = generate(logits, prompt, gen_length, wishes)
    forwards = (run.active_forwards, run.forwards)
    trace = tuple(run.trace[p] for p in range(run.answer.start, run.answer.stop))
    return BufferCase(prompt, gen_length, wishes, tokens, *forwards, trace=trace)


def seen_by(model: Model, block: int) -> Logits:
    """Logits of a reference model, the mask's left out."""

    def logits(ids: list[int | None]) -> torch.Tensor:
        tensor = torch.tensor([MASK if token is None else token for token in ids])
        mask = block_causal(len(ids), block)
        if isinstance(model, LLaDA2Moe):
            values = model(tensor.unsqueeze(0), mask)[0]
        else:
            assert isinstance(model, SDAR)
            values = model(tensor, mask)
        values[:, MASK] = -torch.inf
        return values

    return logits
