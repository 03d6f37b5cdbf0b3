"""One request's parameters: what is accepted, and what is refused with which words."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from vllm_dllm.config import DllmConfig
from vllm_dllm.decoding.registry import RULES, get_rule
from vllm_dllm.request import (
    NUMERIC_FIELDS,
    UNSUPPORTED,
    DllmParams,
    check_sampling_params,
    resolve,
)

CONFIG = DllmConfig.build(
    {"block_size": 8, "mask_token_id": 255, "threshold": 0.7, "steps": 4}
)
COUNTS = ["steps", "max_nfe", "local_leap_radius", "max_post_steps"]


def rule_with(parameter: str) -> str:
    """A rule that uses it; any rule for what is no parameter of rules."""
    return next(
        (rule for rule in RULES if parameter in get_rule(rule).parameters), "threshold"
    )


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
    ("dllm_max_nfe", 0, "greater than or equal to 1"),
    ("dllm_max_nfe", 2.5, "valid integer"),
    ("dllm_max_nfe", True, "valid integer"),
    ("dllm_block_length", 0, "greater than or equal to 1"),
    ("dllm_block_length", "8", "valid integer"),
    ("dllm_return_trajectory", 2, "valid boolean"),
    ("dllm_return_trajectory", -1, "valid boolean"),
    ("dllm_return_trajectory", "true", "valid boolean"),
    ("dllm_return_trajectory", None, "valid boolean"),
    ("dllm_return_trajectory", [1], "valid boolean"),
    ("dllm_factor", 0, "greater than 0"),
    ("dllm_factor", float("inf"), "finite number"),
    ("dllm_entropy_bound", -0.1, "greater than or equal to 0"),
    ("dllm_entropy_bound", float("inf"), "finite number"),
    ("dllm_local_leap_anchor_threshold", 1.1, "less than or equal to 1"),
    ("dllm_local_leap_anchor_threshold", float("nan"), "less|greater|finite"),
    ("dllm_local_leap_neighbor_threshold", -1, "greater than or equal to 0"),
    ("dllm_local_leap_neighbor_threshold", float("nan"), "less|greater|finite"),
    ("dllm_local_leap_radius", -1, "greater than or equal to 0"),
    ("dllm_local_leap_radius", 1.5, "valid integer"),
    ("dllm_low_threshold", 1.1, "less than or equal to 1"),
    ("dllm_low_threshold", float("nan"), "less|greater|finite"),
    ("dllm_edit_threshold", 1.1, "less than or equal to 1"),
    ("dllm_edit_threshold", float("nan"), "less|greater|finite"),
    ("dllm_max_post_steps", -1, "greater than or equal to 0"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), REFUSED)
def test_a_refusal_names_field_value_and_what_is_allowed(
    field: str, value: Any, allowed: str
) -> None:
    """'Invalid request' leaves the user to guess which of ten fields it was."""
    with pytest.raises(ValueError, match=allowed) as failure:
        resolve({field: value}, CONFIG)
    assert f"{field}={value!r}" in str(failure.value)


@pytest.mark.parametrize("field", COUNTS)
def test_a_count_has_an_upper_limit(field: str) -> None:
    """A number that fits no tensor raises in the worker, and ends it for everybody."""
    own = {"dllm_algorithm": rule_with(field), f"dllm_{field}": 1_000_000}
    assert getattr(resolve(own, CONFIG), field) == 1_000_000
    for count in (1_000_001, 2**63, 2**64 - 1):
        own[f"dllm_{field}"] = count
        with pytest.raises(
            ValueError, match="less than or equal to 1000000"
        ) as failure:
            resolve(own, CONFIG)
        assert f"dllm_{field}={count!r}" in str(failure.value)


@pytest.mark.parametrize("field", ["dllm_treshold", "dllm_", "dllm_block_size"])
def test_an_unknown_field_is_answered_with_all_known_ones(field: str) -> None:
    """A misspelled parameter would be ignored, and its effect blamed on the model."""
    with pytest.raises(ValueError, match=f"unknown field {field}=0.5;") as failure:
        resolve({field: 0.5}, CONFIG)
    for name in DllmParams.model_fields:
        assert f"dllm_{name}" in str(failure.value)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("field", NUMERIC_FIELDS)
def test_a_field_that_the_rule_does_not_use_is_refused(rule: str, field: str) -> None:
    """A user would tune a number that nothing reads."""
    own = {"dllm_algorithm": rule, f"dllm_{field}": 1}
    used = get_rule(rule).parameters
    if field in used:
        assert getattr(resolve(own, CONFIG), field) == 1
        return
    with pytest.raises(ValueError, match=f"dllm_{field}=1 has no meaning") as failure:
        resolve(own, CONFIG)
    named = str(failure.value).partition("which uses ")[2].split(", ")
    assert repr(rule) in str(failure.value)
    assert [name for name in named if name] == sorted(f"dllm_{p}" for p in used)


def test_an_alias_is_refused_what_its_rule_does_not_use() -> None:
    """A rule under a foreign name would accept anything."""
    own = {"dllm_algorithm": "low_confidence_static", "dllm_threshold": 0.5}
    with pytest.raises(ValueError, match=r"no meaning .*'low_confidence'"):
        resolve(own, CONFIG)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_knows_the_fields_that_are_no_numbers_of_rules(rule: str) -> None:
    """A budget of forwards would be refused for the rule that needs it most."""
    own = {"dllm_max_nfe": 3, "dllm_return_trajectory": 1, "dllm_block_length": 8}
    params = resolve({"dllm_algorithm": rule, **own}, CONFIG)
    assert (params.algorithm, params.max_nfe, params.block_length) == (rule, 3, 8)
    assert params.return_trajectory is True


def test_nothing_is_limited_or_traced_unless_it_is_asked_for() -> None:
    """Answers would end early, or carry a field that no client expects."""
    params = resolve(None, CONFIG)
    assert (params.max_nfe, params.block_length) == (None, None)
    assert params.return_trajectory is False


@pytest.mark.parametrize(
    ("value", "meant"), [(0, False), (1, True), (False, False), (True, True)]
)
def test_a_flag_may_be_a_number(value: Any, meant: bool) -> None:
    """`vllm_xargs` turns a JSON boolean into 0 or 1."""
    params = resolve({"dllm_return_trajectory": value}, CONFIG)
    assert params.return_trajectory is meant


@pytest.mark.parametrize("length", [1, 4, 16, 32])
def test_a_block_length_of_another_size_is_refused(length: int) -> None:
    """The server's block size is the one that the checkpoint was trained with."""
    with pytest.raises(ValueError, match=f"dllm_block_length={length} .*server, 8"):
        resolve({"dllm_block_length": length}, CONFIG)


@pytest.mark.parametrize(
    ("steps", "max_tokens", "expected"),
    [(32, 5, 5), (32, 1, 1), (32, 32, 32), (32, 500, 32), (3, 5, 3), (32, None, 32)],
)
def test_steps_are_no_more_than_the_answer_where_the_authors_cap_them(
    steps: int, max_tokens: int | None, expected: int
) -> None:
    """LLaDA2's authors decode 5 tokens in 5 steps; more steps, other tokens."""
    capped = DllmConfig.build(CONFIG.model_dump(), {"steps": 32, "cap_steps": True})
    own = {"dllm_steps": steps}
    assert resolve(own, capped, max_tokens=max_tokens).steps == expected
    assert resolve(own, CONFIG, max_tokens=max_tokens).steps == steps
    if steps == capped.steps:
        assert resolve(None, capped, max_tokens=max_tokens).steps == expected


@pytest.mark.parametrize("rule", RULES)
def test_the_servers_values_are_no_ground_for_refusal(rule: str) -> None:
    """A server-wide threshold would forbid every rule without one."""
    assert resolve({"dllm_algorithm": rule}, CONFIG).algorithm == rule


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.5, "top_k": 20, "min_p": 0.1},
        {"seed": 7},
        {"n": 3, "seed": 7},
        {"presence_penalty": 0.5, "frequency_penalty": -0.5},
        {"repetition_penalty": 1.1},
        {"logit_bias": {3: 1.0}},
        {"bad_words": ["a"]},
        {"allowed_token_ids": [1, 2]},
        {"min_tokens": 2},
        {"logprobs": 0},
        {"logprobs": 2},
        {"logprobs": -1},
        {"stop": ["x"], "stop_token_ids": [3], "ignore_eos": True},
        {"stop": ["x"], "include_stop_str_in_output": True},
        {"max_tokens": 3, "skip_special_tokens": False},
        {"logit_bias": {}, "bad_words": [], "min_tokens": 0},
        {"extra_args": {"dllm_steps": 2, "other_plugin": 1}},
    ],
)
def test_what_vllm_offers_for_a_token_is_accepted(fields: dict[str, Any]) -> None:
    """A field that works would be out of reach."""
    params = SamplingParams(**fields)
    before = params.clone()
    check_sampling_params(params, CONFIG)
    assert params == before


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("prompt_logprobs", 1, "both sides"),
        ("prompt_logprobs", 0, "both sides"),
        ("prompt_logprobs", -1, "both sides"),
        ("prompt_logprob_token_ids", [3], "prompt_logprobs"),
        ("structured_outputs", StructuredOutputsParams(json="{}"), "left to right"),
        ("structured_outputs", StructuredOutputsParams(choice=["a"]), "any order"),
        ("thinking_token_budget", 8, "not supported"),
        ("thinking_token_budget", 0, "not supported"),
        ("logprob_token_ids", [3], "ask for logprobs"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_canvas_cannot_honour_is_refused(
    field: str, value: Any, reason: str, temperature: float
) -> None:
    """A sampling parameter that is accepted and ignored gives wrong answers."""
    params = SamplingParams(temperature=temperature)
    assert getattr(params, field) is None
    setattr(params, field, value)
    with pytest.raises(ValueError, match=rf"not supported.*|{reason}") as failure:
        check_sampling_params(params, CONFIG)
    assert f"{field}={value!r}" in str(failure.value)
    assert reason in str(failure.value)


def test_everything_that_is_refused_is_tested_above() -> None:
    """A new refusal could name a field that vLLM does not have."""
    assert UNSUPPORTED.keys() == {
        "prompt_logprobs",
        "prompt_logprob_token_ids",
        "structured_outputs",
        "thinking_token_budget",
        "logprob_token_ids",
    }


def test_an_answer_of_masks_alone_is_refused() -> None:
    """The mask is never chosen, so there would be no token to choose at all."""
    params = SamplingParams(allowed_token_ids=[CONFIG.mask_token_id])
    with pytest.raises(ValueError, match="never chosen") as failure:
        check_sampling_params(params, CONFIG)
    assert "allowed_token_ids=[255]" in str(failure.value)
    params = SamplingParams(allowed_token_ids=[CONFIG.mask_token_id, 7])
    check_sampling_params(params, CONFIG)


@pytest.mark.parametrize("field", ["diffusion_max_steps", "diffusion_anything"])
def test_fields_of_other_diffusion_models_are_refused(field: str) -> None:
    """`diffusion_max_steps` means DiffusionGemma's steps and does nothing here."""
    params = SamplingParams(extra_args={"dllm_steps": 2, field: 4})
    with pytest.raises(ValueError, match=rf"{field} .* dllm_steps"):
        check_sampling_params(params, CONFIG)


def test_a_check_of_sampling_parameters_is_one_of_our_fields_too() -> None:
    """The worker would be the first to find a bad one, and the engine would end."""
    params = SamplingParams(extra_args={"dllm_threshold": 2})
    with pytest.raises(ValueError, match="dllm_threshold=2"):
        check_sampling_params(params, CONFIG)
