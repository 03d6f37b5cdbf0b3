"""One request's parameters: what is accepted, and what is refused with which words."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from vllm_dllm.config import DllmConfig
from vllm_dllm.decoding.registry import RULES
from vllm_dllm.request import DllmParams, check_sampling_params, resolve

CONFIG = DllmConfig.build(
    {"block_size": 8, "mask_token_id": 255, "threshold": 0.7, "steps": 4}
)


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, **fields)


@pytest.mark.parametrize("extra_args", [None, {}, {"other_plugin": object()}])
def test_a_request_that_says_nothing_gets_the_servers_choices(
    extra_args: dict[str, Any] | None,
) -> None:
    """Every client would have to know the settings of the model."""
    assert resolve(extra_args, CONFIG) == DllmParams(
        algorithm="threshold", threshold=0.7, steps=4
    )


def test_a_requests_own_values_win() -> None:
    """A parameter that is accepted and then ignored is worse than a refusal."""
    own = {"dllm_threshold": 0.25, "dllm_steps": 2}
    assert resolve(own, CONFIG) == DllmParams(
        algorithm="threshold", threshold=0.25, steps=2
    )
    assert resolve({"dllm_algorithm": "sequential"}, CONFIG) == DllmParams(
        algorithm="sequential", threshold=0.7, steps=4
    )


def test_an_alias_is_replaced_by_the_rules_own_name() -> None:
    """The worker would look for a rule that is in no table."""
    own = {"dllm_algorithm": "low_confidence_dynamic", "dllm_threshold": 0.5}
    assert resolve(own, CONFIG).algorithm == "threshold"


@pytest.mark.parametrize("threshold", [0, 1, 0.0, 1.0])
def test_the_ends_of_a_range_belong_to_it(threshold: float) -> None:
    """0 and 1 are what people try first; as JSON they arrive as integers."""
    params = resolve({"dllm_threshold": threshold}, CONFIG)
    assert params.threshold == threshold
    assert isinstance(params.threshold, float)


REFUSED: list[tuple[str, Any, str]] = [
    ("dllm_threshold", -0.01, "greater than or equal to 0"),
    ("dllm_threshold", 1.01, "less than or equal to 1"),
    ("dllm_threshold", float("nan"), "finite number"),
    ("dllm_threshold", float("inf"), "less than or equal to 1|finite number"),
    ("dllm_threshold", "0.5", "valid number"),
    ("dllm_threshold", True, "valid number"),
    ("dllm_threshold", [0.5], "valid number"),
    ("dllm_threshold", None, "valid number"),
    ("dllm_steps", 0, "greater than or equal to 1"),
    ("dllm_steps", -3, "greater than or equal to 1"),
    ("dllm_steps", 2.5, "valid integer"),
    ("dllm_steps", "4", "valid integer"),
    ("dllm_steps", True, "valid integer"),
    ("dllm_algorithm", "fastest", "supported: .*threshold"),
    ("dllm_algorithm", 3, "valid string"),
    ("dllm_algorithm", ["threshold"], "valid string"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), REFUSED)
def test_a_refusal_names_field_value_and_what_is_allowed(
    field: str, value: Any, allowed: str
) -> None:
    """'Invalid request' leaves the user to guess which of ten fields it was."""
    with pytest.raises(ValueError, match=allowed) as failure:
        resolve({field: value}, CONFIG)
    assert f"{field}={value!r}" in str(failure.value)


@pytest.mark.xfail(reason="dllm_steps has no upper limit", strict=True)
@pytest.mark.parametrize("steps", [2**63, 2**64 - 1])
def test_steps_that_fit_no_tensor_are_refused(steps: int) -> None:
    """One such request raises in the worker, and the engine ends for everybody."""
    with pytest.raises(ValueError, match="dllm_steps"):
        resolve({"dllm_steps": steps}, CONFIG)


@pytest.mark.parametrize("field", ["dllm_treshold", "dllm_", "dllm_block_size"])
def test_an_unknown_field_is_answered_with_all_known_ones(field: str) -> None:
    """A misspelled parameter would be ignored, and its effect blamed on the model."""
    with pytest.raises(ValueError, match=f"unknown field {field};") as failure:
        resolve({field: 0.5}, CONFIG)
    for name in DllmParams.model_fields:
        assert f"dllm_{name}" in str(failure.value)


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ("sequential", "dllm_threshold"),
        ("low_confidence", "dllm_threshold"),
        ("low_confidence_static", "dllm_threshold"),
    ],
)
def test_a_field_that_the_rule_does_not_use_is_refused(rule: str, field: str) -> None:
    """A user would tune a number that nothing reads."""
    with pytest.raises(ValueError, match=f"{field} has no meaning") as failure:
        resolve({"dllm_algorithm": rule, field: 0.5}, CONFIG)
    assert DllmConfig.build(CONFIG.model_dump(), {"algorithm": rule}).algorithm in str(
        failure.value
    )


@pytest.mark.parametrize("rule", RULES)
def test_the_servers_values_are_no_ground_for_refusal(rule: str) -> None:
    """A server-wide threshold would forbid every rule without one."""
    assert resolve({"dllm_algorithm": rule}, CONFIG).algorithm == rule


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"top_p": 0.5, "top_k": 20},  # without effect on the best token
        {"seed": 7},
        {"stop": ["x"], "stop_token_ids": [3], "ignore_eos": True},
        {"max_tokens": 3, "skip_special_tokens": False},
        {"logit_bias": {}, "bad_words": [], "min_tokens": 0},
        {"extra_args": {"dllm_steps": 2, "other_plugin": 1}},
    ],
)
def test_a_greedy_request_is_accepted(fields: dict[str, Any]) -> None:
    """Harmless fields that clients always send would turn into errors."""
    check_sampling_params(greedy(**fields), CONFIG)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_p", 0.1),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("repetition_penalty", 1.1),
        ("logit_bias", {3: 1.0}),
        ("bad_words", ["a"]),
        ("allowed_token_ids", [1, 2]),
        ("min_tokens", 2),
        ("logprobs", 0),
        ("logprobs", 2),
        ("prompt_logprobs", 1),
    ],
)
def test_what_greedy_decoding_cannot_honour_is_refused(field: str, value: Any) -> None:
    """A sampling parameter that is accepted and ignored gives wrong answers."""
    params = greedy()
    setattr(params, field, value)
    with pytest.raises(ValueError, match="not supported") as failure:
        check_sampling_params(params, CONFIG)
    assert f"{field}={value!r}" in str(failure.value)


def test_sampling_is_refused_with_the_way_out() -> None:
    """vLLM's default temperature is 1: the message is what a first user reads."""
    with pytest.raises(ValueError, match=r"temperature=1.0 .*must be 0.0"):
        check_sampling_params(SamplingParams(), CONFIG)


def test_fields_of_other_diffusion_models_are_refused() -> None:
    """`diffusion_max_steps` means DiffusionGemma's steps and does nothing here."""
    params = greedy(extra_args={"diffusion_max_steps": 4})
    with pytest.raises(ValueError, match=r"diffusion_max_steps .* dllm_steps"):
        check_sampling_params(params, CONFIG)
