"""Requests with random prompts, of every rule that a family has."""

import random
from typing import Any

from tests.golden_cases import MASK, Case

INDEL = {"algorithm": "joint_threshold_indel"}
LLADA22_RULES: list[dict[str, Any]] = [
    INDEL | {"threshold": 0.3, "edit_threshold": 0.2, "max_post_steps": 3},
    INDEL | {"threshold": 0.9, "edit_threshold": 0.0, "max_post_steps": 0},
    {"algorithm": "llada2", "threshold": 0.3, "steps": 4},
]


def new_cases(
    checkpoint: str, block_length: int, prompt_lengths: list[int], gen_length: int
) -> list[Case]:
    """Without their answers."""
    rng = random.Random(f"{checkpoint} {prompt_lengths}")
    return [
        Case(
            checkpoint,
            [rng.randrange(2, MASK) for _ in range(length)],
            gen_length,
            block_length,
            **fields,
        )
        for length in prompt_lengths
        for fields in rules_of(checkpoint, block_length)
    ]


def rules_of(checkpoint: str, block_length: int) -> list[dict[str, Any]]:
    if checkpoint.startswith("fastdllm2"):
        return [
            {"algorithm": "threshold", "threshold": threshold, "sub_block_length": sub}
            for threshold, sub in ((0.9, 8), (0.3, 12))
        ]
    if checkpoint.startswith("llada22"):
        return LLADA22_RULES
    # Rule, threshold, and the share of the block that a step decodes at least.
    rules = [("low_confidence_dynamic", 0.3, 1), ("low_confidence_static", None, 2)]
    rules.append(("sequential", None, 2))
    if checkpoint.startswith("llada"):
        rules = [("llada2", 0.95, 1), ("llada2", 0.3, 2)]
    return [
        {"algorithm": name, "threshold": threshold, "steps": block_length // share}
        for name, threshold, share in rules
    ]
