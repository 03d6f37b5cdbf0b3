"""Random requests of the families whose golden cases have few combinations."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from tests.engines import Engine, tokens_of, uses
from tests.full_attention import CACHES
from tests.golden_cases import MASK, Case, differences, too_many_forwards

pytestmark = pytest.mark.timeout(300)
COUNT = 60
THRESHOLDS = (0.1, 0.3, 0.6, 0.9, 1.0)


def of_fast_dllm_v2(rng: Random) -> dict[str, Any]:
    return {
        "block_length": 32,
        "algorithm": "threshold",
        "threshold": rng.choice(THRESHOLDS),
        "sub_block_length": rng.choice((1, 3, 8, 8, 12, 32)),
    }


def of_nemotron(rng: Random) -> dict[str, Any]:
    block = rng.choice((1, 2, 7, 16, 32, 32, 40))
    rules: list[dict[str, Any]] = [
        {"algorithm": "threshold", "threshold": rng.choice(THRESHOLDS)},
        {"algorithm": "quota", "steps": rng.randint(1, block)},
        {"algorithm": "quota"},
        {"algorithm": "linear_spec"},
    ]
    return {"block_length": block, **rng.choice(rules)}


def of_diffullama(rng: Random) -> dict[str, Any]:
    rule = rng.choice(("maskgit_plus", "topk_margin", "entropy"))
    fields = {"algorithm": rule, "steps": rng.randint(1, 24)}
    cache = rng.choice(CACHES)
    if cache != "none":
        fields["block_length"] = rng.choice((1, 5, 8, 32, None))
        if rng.random() < 0.4:
            fields |= {"algorithm": "threshold", "threshold": rng.choice(THRESHOLDS)}
            del fields["steps"]
    elif rng.random() < 0.5:
        fields["suffix"] = [rng.randrange(2, MASK) for _ in range(rng.randint(1, 9))]
    return {"block_length": None, "cache": cache, **fields}


FAMILIES: dict[str, Callable[[Random], dict[str, Any]]] = {
    "fastdllm2-pub0": of_fast_dllm_v2,
    "nemotron-pub0": of_nemotron,
    "diffullama-pub0": of_diffullama,
}


def random_case(checkpoint: str, rng: Random) -> Case:
    prompt = [rng.randrange(2, MASK) for _ in range(rng.randint(1, 80))]
    shape = (checkpoint, prompt, rng.choice((1, 2, 13, 24, 33, 40)))
    return Case(*shape, **FAMILIES[checkpoint](rng)).answered()


@uses("fastdllm2", "nemotron", "diffullama")
def test_random_requests_answer_as_the_reference(engine: Engine) -> None:
    """A length, a block or a threshold that meets others in a batch for the first
    time."""
    rng = Random(engine.spec.checkpoint)
    cases = [random_case(engine.spec.checkpoint, rng) for _ in range(COUNT)]
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []
    assert too_many_forwards(cases, list(map(engine.forwards, outputs))) == []
    few = cases[:12]
    outputs = engine.ask_preempting([(case, {}) for case in few], every=2)
    assert differences(few, [tokens_of(output) for output in outputs]) == []
