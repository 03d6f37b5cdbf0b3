"""Servers that tests of requests are made against, and requests to them."""

from typing import Any

from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.decoding.registry import NAMES, get_rule

CONFIG = DllmConfig.build(
    {"block_size": 8, "mask_token_id": 255, "threshold": 0.7, "steps": 4},
    facts=Facts(delete_token_id=253, split_token_id=254),
)
"""Has every rule."""


FACTS = Facts(
    attention="full",
    rule_names={"threshold": "confidence_threshold"},
    eos_token_id=1,
    max_model_len=200,
    max_num_batched_tokens=150,
    page_size=16,
)


FULL = DllmConfig.build(
    {"mask_token_id": 255, "block_size": 32, "algorithm": "low_confidence"}, facts=FACTS
)


WHOLE = DllmConfig.build(
    {"mask_token_id": 255, "algorithm": "neg_entropy"}, facts=FACTS
)
"""A family whose block is the whole answer."""


def rule_with(parameter: str) -> str:
    """A rule that uses it; any rule for what is no parameter of rules."""
    return next(
        (rule for rule in NAMES if parameter in get_rule(rule).parameters), "threshold"
    )


def with_grammar(**extra_args: Any) -> SamplingParams:
    grammar = StructuredOutputsParams(json="{}")
    return SamplingParams(extra_args=extra_args, structured_outputs=grammar)
