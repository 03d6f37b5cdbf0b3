"""d3LLM's blocks that a request asks for: what its steps forward, and its defaults."""

from typing import Any

import pytest

from tests.wishes import CONFIG, FULL, WHOLE
from vllm_dllm.config import DllmConfig
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.plans.grid import Grid
from vllm_dllm.request import plan_of, resolve, wishes_of

D3LLM = {"dllm_algorithm": "d3llm"}


def test_the_whole_canvas_is_forwarded_in_every_step() -> None:
    """A cache of the server's would leave keys of masks behind."""
    cached = DllmConfig.build(FULL.model_dump(), {"cache": "dual"}, facts=FULL.facts)
    for config in (FULL, WHOLE, cached):
        decoding = resolve(D3LLM | {"dllm_block_length": 8}, config, 20)
        assert decoding.parameters["block_length"] == 8
        plan = plan_of(decoding, config, 9, 20)
        assert plan == FullAttention(Grid(9, 24, 33), "none")
    assert resolve(D3LLM, WHOLE, 20).block_length == 32
    filled = resolve(D3LLM | {"dllm_suffix_token_ids": [5] * 4}, FULL, 20)
    assert plan_of(filled, FULL, 9, 20) == FullAttention(Grid(9, 20, 29), "none", 0, 4)


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [("d3llm", 0.5), ("entropy_threshold", 0.5), ("wedlm", 0.4)],
)
def test_a_threshold_that_nobody_names_is_that_of_the_rules_authors(
    rule: str, threshold: float
) -> None:
    """One for all would be another decoder than theirs for some."""
    found = [
        resolve({"dllm_algorithm": rule, **own}, config, 20).parameters
        for own in ({}, {"dllm_entropy_threshold": None})
        for config in (FULL, FULL.model_copy(update={"entropy_threshold": 1.25}))
    ]
    assert [p["entropy_threshold"] for p in found] == [threshold, 1.25, 0, 0]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("cache", "prefix", "is not defined for the decoding rule 'd3llm'"),
        ("buffer_size", 1, "is not for d3llm"),
        ("buffer_size", 4, "is not for d3llm"),
        ("threshold", 0.5, "has no meaning for the decoding rule 'd3llm'"),
        ("semi_complete_threshold", 0.5, "has no meaning for the decoding rule"),
        ("block_length", 201, "allowed: 1 to 200"),
    ],
)
def test_what_has_no_meaning_is_refused(field: str, value: Any, said: str) -> None:
    """A field that is accepted and ignored gives wrong answers."""
    with pytest.raises(ValueError, match=rf"dllm_{field}=.*{said}"):
        wishes_of(D3LLM | {f"dllm_{field}": value}, FULL)


def test_other_models_refuse_it() -> None:
    """A block of theirs does not see those behind it."""
    with pytest.raises(ValueError, match="'d3llm' is for models with full attention"):
        wishes_of(D3LLM, CONFIG)
