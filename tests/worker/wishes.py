"""Random requests."""

import random

from tests.worker.desk import FAMILIES, MASK

CACHES = ("none", "prefix", "dual")


def a_prompt(rng: random.Random, longest: int = 12) -> list[int]:
    return [rng.randrange(3, MASK) for _ in range(rng.randint(1, longest))]


def a_canvas(rng: random.Random, length: int) -> list[int]:
    """With gaps, the last of which ends at `length`, and tokens between and behind."""
    tokens = [rng.choice((-1, rng.randrange(3, MASK))) for _ in range(length - 1)]
    return [*tokens, -1, *a_prompt(rng, 3)[1:]]


def wishes(
    rng: random.Random, family: str, max_tokens: int | None = None
) -> dict[str, object]:
    """Random `dllm_*` fields, but for the rule's own; of an answer of `max_tokens` that
    may have gaps."""
    if family == "window":
        return {"window": rng.randint(1, 9)}
    if not FAMILIES[family].full_attention:
        return {}
    if family == "seeded-causal":
        return {"block_length": rng.randint(1, 9)}
    fields: dict[str, object] = {"cache": rng.choice(CACHES)}
    fields["block_length"] = rng.randint(1, 9)
    if rng.random() < 0.3:
        fields["cfg_scale"] = 1.5
    if rng.random() < 0.3:
        fields["suffix_token_ids"] = a_prompt(rng, 5)
    elif max_tokens is not None and rng.random() < 0.4:
        fields["canvas_token_ids"] = a_canvas(rng, max_tokens)
    return fields
