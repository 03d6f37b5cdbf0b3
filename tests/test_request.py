"""One request's parameters: what is accepted, and what is refused with which words."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from vllm_dllm import span
from vllm_dllm.admission import UNSUPPORTED, check_length, check_sampling_params
from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.decoding.registry import ALIASES, RULES, get_rule
from vllm_dllm.models.registry import FAMILIES
from vllm_dllm.params import FULL_ATTENTION_FIELDS, NUMERIC_FIELDS, DllmParams
from vllm_dllm.request import (
    MAX_CREDIT_BLOCK,
    Decoding,
    decoding_of,
    plan_of,
    resolve,
    wishes_of,
)

CONFIG = DllmConfig.build(
    {"block_size": 8, "mask_token_id": 255, "threshold": 0.7, "steps": 4}
)
COUNTS = {"steps": 1_000_000, "max_nfe": 1_000_000, "local_leap_radius": 1_000_000}
COUNTS |= {"max_post_steps": 4096}


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
    assert resolve(extra_args, CONFIG, 50) == Decoding(
        algorithm="threshold",
        block_length=8,
        parameters={"threshold": 0.7, "steps": 4},
        max_nfe=None,
        cache="none",
        cfg_scale=0.0,
        logits_eos_inf=False,
        confidence_eos_eot_inf=False,
        suffix_token_ids=(),
        return_trajectory=False,
        stream_drafts=False,
    )


def test_a_requests_own_values_win() -> None:
    """A parameter that is accepted and then ignored is worse than a refusal."""
    own = {"dllm_threshold": 0.25, "dllm_steps": 2, "dllm_max_nfe": 3}
    decoding = resolve(own, CONFIG, 50)
    assert decoding.parameters == {"threshold": 0.25, "steps": 2}
    assert decoding.max_nfe == 3
    decoding = resolve({"dllm_algorithm": "sequential"}, CONFIG, 50)
    assert (decoding.algorithm, decoding.parameters) == ("sequential", {"steps": 4})


def test_an_alias_is_replaced_by_the_rules_own_name() -> None:
    """The worker would look for a rule that is in no table."""
    own = {"dllm_algorithm": "low_confidence_dynamic", "dllm_threshold": 0.5}
    assert wishes_of(own, CONFIG).algorithm == "threshold"


@pytest.mark.parametrize("threshold", [0, 1, 0.0, 1.0])
def test_the_ends_of_a_range_belong_to_it(threshold: float) -> None:
    """0 and 1 are what people try first; as JSON they arrive as integers."""
    params = wishes_of({"dllm_threshold": threshold}, CONFIG)
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
        wishes_of({field: value}, CONFIG)
    assert f"{field}={value!r}" in str(failure.value)


@pytest.mark.parametrize(("field", "most"), COUNTS.items())
def test_a_count_has_an_upper_limit(field: str, most: int) -> None:
    """A number that fits no tensor raises in the worker, and ends it for everybody."""
    own = {"dllm_algorithm": rule_with(field), f"dllm_{field}": most}
    assert getattr(wishes_of(own, CONFIG), field) == most
    for count in (most + 1, 2**63, 2**64 - 1):
        own[f"dllm_{field}"] = count
        with pytest.raises(ValueError, match=f"equal to {most};") as failure:
            wishes_of(own, CONFIG)
        assert f"dllm_{field}={count!r}" in str(failure.value)


@pytest.mark.parametrize("field", ["dllm_treshold", "dllm_", "dllm_block_size"])
def test_an_unknown_field_is_answered_with_all_known_ones(field: str) -> None:
    """A misspelled parameter would be ignored, and its effect blamed on the model."""
    with pytest.raises(ValueError, match=f"unknown field {field}=0.5;") as failure:
        wishes_of({field: 0.5}, CONFIG)
    for name in DllmParams.model_fields:
        assert f"dllm_{name}" in str(failure.value)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("field", NUMERIC_FIELDS)
def test_a_field_that_the_rule_does_not_use_is_refused(rule: str, field: str) -> None:
    """A user would tune a number that nothing reads."""
    value = 0.5 if field == "eps" else 1  # a time below 1
    own = {"dllm_algorithm": rule, f"dllm_{field}": value}
    used = get_rule(rule).parameters
    if field in used:
        assert getattr(wishes_of(own, CONFIG), field) == value
        return
    refused = f"dllm_{field}={value} has no meaning"
    with pytest.raises(ValueError, match=refused) as failure:
        wishes_of(own, CONFIG)
    named = str(failure.value).partition("which uses ")[2].split(", ")
    assert repr(rule) in str(failure.value)
    assert [name for name in named if name] == sorted(f"dllm_{p}" for p in used)


def test_an_alias_is_refused_what_its_rule_does_not_use() -> None:
    """A rule under a foreign name would accept anything."""
    own = {"dllm_algorithm": "low_confidence_static", "dllm_threshold": 0.5}
    with pytest.raises(ValueError, match=r"no meaning .*'low_confidence'"):
        wishes_of(own, CONFIG)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_knows_the_fields_that_are_no_numbers_of_rules(rule: str) -> None:
    """A budget of forwards would be refused for the rule that needs it most."""
    own = {"dllm_max_nfe": 3, "dllm_return_trajectory": 1, "dllm_block_length": 8}
    params = wishes_of({"dllm_algorithm": rule, **own}, CONFIG)
    assert (params.algorithm, params.max_nfe, params.block_length) == (rule, 3, 8)
    assert params.return_trajectory is True


def test_nothing_is_limited_or_traced_unless_it_is_asked_for() -> None:
    """Answers would end early, or carry a field that no client expects."""
    params = wishes_of(None, CONFIG)
    assert (params.max_nfe, params.block_length) == (None, None)
    assert params.return_trajectory is False
    assert (params.cache, params.cfg_scale) == ("none", 0.0)
    assert params.logits_eos_inf is params.confidence_eos_eot_inf is False


@pytest.mark.parametrize(
    ("value", "meant"), [(0, False), (1, True), (False, False), (True, True)]
)
def test_a_flag_may_be_a_number(value: Any, meant: bool) -> None:
    """`vllm_xargs` turns a JSON boolean into 0 or 1."""
    params = wishes_of({"dllm_return_trajectory": value}, CONFIG)
    assert params.return_trajectory is meant


@pytest.mark.parametrize("length", [1, 4, 16, 32])
def test_a_block_length_of_another_size_is_refused(length: int) -> None:
    """The server's block size is the one that the checkpoint was trained with."""
    with pytest.raises(ValueError, match=f"dllm_block_length={length} .*server, 8"):
        wishes_of({"dllm_block_length": length}, CONFIG)


@pytest.mark.parametrize(
    ("steps", "max_tokens", "expected"),
    [(32, 5, 5), (32, 1, 1), (32, 32, 32), (32, 500, 32), (3, 5, 3)],
)
def test_steps_are_no_more_than_the_answer_where_the_authors_cap_them(
    steps: int, max_tokens: int, expected: int
) -> None:
    """LLaDA2's authors decode 5 tokens in 5 steps; more steps, other tokens."""
    capped = DllmConfig.build(CONFIG.model_dump(), {"steps": 32, "cap_steps": True})
    own = {"dllm_algorithm": "sequential", "dllm_steps": steps}
    assert resolve(own, capped, max_tokens).parameters == {"steps": expected}
    assert resolve(own, CONFIG, max_tokens).parameters == {"steps": steps}
    if steps == capped.steps:
        del own["dllm_steps"]
        assert resolve(own, capped, max_tokens).parameters == {"steps": expected}


@pytest.mark.parametrize("rule", RULES)
def test_the_servers_values_are_no_ground_for_refusal(rule: str) -> None:
    """A server-wide threshold would forbid every rule without one."""
    assert wishes_of({"dllm_algorithm": rule}, CONFIG).algorithm == rule


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


def with_grammar(**extra_args: Any) -> SamplingParams:
    grammar = StructuredOutputsParams(json="{}")
    return SamplingParams(extra_args=extra_args, structured_outputs=grammar)


@pytest.mark.parametrize("max_tokens", [3, 50])
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("algorithm", ["joint_threshold", "threshold", "sequential"])
def test_a_grammar_is_followed_one_token_per_step(
    algorithm: str, steps: int | None, max_tokens: int
) -> None:
    """The server's rule decodes in any order, and its steps several tokens at once."""
    for config in (CONFIG, FULL):
        fields = {"algorithm": algorithm, "steps": steps}
        config = config.model_copy(update={**fields, "cap_steps": True})
        params = decoding_of(with_grammar(), config, max_tokens)
        assert params.algorithm == "sequential"
        assert params.parameters == {"steps": params.block_length}
        own = with_grammar(dllm_algorithm="sequential")
        assert decoding_of(own, config, max_tokens) == params


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dllm_algorithm", "threshold"),
        ("dllm_algorithm", "joint_threshold"),
        ("dllm_steps", 4),
        ("dllm_threshold", 0.5),
    ],
)
def test_what_a_grammar_makes_impossible_is_refused(field: str, value: Any) -> None:
    """A rule that is asked for and not used gives other answers than expected."""
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        check_sampling_params(with_grammar(**{field: value}), CONFIG)
    check_sampling_params(with_grammar(dllm_max_nfe=3), CONFIG)


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


@pytest.mark.parametrize(
    ("steps", "max_tokens", "block", "per_block"),
    [
        (None, 64, 32, 32),
        (None, 70, 32, 32),
        (None, 5, 32, 32),
        (64, 64, 32, 32),
        (32, 64, 32, 16),
        (32, 70, 32, 10),  # three blocks, the last of which is cut
        (1, 64, 32, 1),
        (2, 96, 32, 1),  # not 0
        (5, 5, 5, 5),
        (7, 20, 3, 1),
        (1_000_000, 64, 32, 500_000),
    ],
)
def test_steps_are_spread_over_the_blocks_of_the_answer(
    steps: int | None, max_tokens: int, block: int, per_block: int
) -> None:
    """The authors' `steps` are those of the whole answer: taken for those of a block,
    an answer costs many times as much. Without any, a step decodes one token."""
    own = {} if steps is None else {"dllm_steps": steps}
    params = resolve({"dllm_block_length": block, **own}, FULL, max_tokens)
    assert (params.block_length, params.parameters["steps"]) == (block, per_block)


def test_the_block_is_the_requests_else_the_servers_else_the_whole_answer() -> None:
    """Dream's answers are decoded as one block; blocks of 32 are another order."""
    own = {"dllm_block_length": 8}
    for config, expected in ((FULL, 32), (WHOLE, 50)):
        assert resolve(None, config, 50).block_length == expected
        assert resolve(own, config, 50).block_length == 8
    params = resolve({"dllm_steps": 10}, WHOLE, 50)
    assert (params.block_length, params.parameters["steps"]) == (50, 10)
    assert resolve(None, WHOLE, 50).parameters["steps"] == 50


def test_without_the_length_of_the_answer_a_request_can_be_checked() -> None:
    """vLLM checks parameters before it knows how long an answer may be."""
    for config in (FULL, WHOLE):
        assert wishes_of({"dllm_steps": 10}, config).algorithm == config.algorithm
        with pytest.raises(ValueError, match="dllm_steps=0"):
            wishes_of({"dllm_steps": 0}, config)
        check_sampling_params(SamplingParams(temperature=0.0), config)


def test_the_servers_choices_are_defaults_of_requests_with_full_attention() -> None:
    """An operator who chose a cache would serve without one."""
    fields = {"mask_token_id": 255, "cache": "dual", "steps": 20, "eps": 0.5}
    config = DllmConfig.build(fields, {"algorithm": "origin"}, facts=FACTS)
    params = resolve(None, config, 10)
    assert (params.cache, params.algorithm) == ("dual", "origin")
    assert params.parameters == {"steps": 20, "eps": 0.5}
    assert resolve({"dllm_cache": "none"}, config, 10).cache == "none"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cache", "none"),
        ("cache", "dual"),
        ("cfg_scale", 0.0),
        ("cfg_scale", 1.5),
        ("logits_eos_inf", True),
        ("logits_eos_inf", 0),
        ("confidence_eos_eot_inf", 1),
        ("confidence_eos_eot_inf", False),
        ("suffix_token_ids", [5, 0]),
        ("suffix_token_ids", []),
    ],
)
def test_fields_of_full_attention_are_refused_for_block_causal_models(
    field: str, value: Any
) -> None:
    """They would do nothing, and the user would believe that they do."""
    assert field in FULL_ATTENTION_FIELDS
    with pytest.raises(ValueError, match="block-causal model") as failure:
        wishes_of({f"dllm_{field}": value}, CONFIG)
    assert f"dllm_{field}={value!r} has no meaning" in str(failure.value)
    settled = getattr(resolve({f"dllm_{field}": value}, FULL, 10), field)
    assert settled == (tuple(value) if isinstance(value, list) else value)


def test_no_field_of_full_attention_is_missing_above() -> None:
    """A new one could be accepted in silence where it means nothing."""
    assert set(FULL_ATTENTION_FIELDS) == {
        "cache",
        "cfg_scale",
        "logits_eos_inf",
        "confidence_eos_eot_inf",
        "suffix_token_ids",
    }


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("dllm_cache", "both", "'none', 'prefix' or 'dual'"),
        ("dllm_cache", None, "'none', 'prefix' or 'dual'"),
        ("dllm_cache", True, "'none', 'prefix' or 'dual'"),
        ("dllm_cache", ["dual"], "'none', 'prefix' or 'dual'"),
        ("dllm_cfg_scale", -0.1, "greater than or equal to 0"),
        ("dllm_cfg_scale", float("inf"), "finite number"),
        ("dllm_cfg_scale", float("nan"), "finite number|greater"),
        ("dllm_cfg_scale", "1", "valid number"),
        ("dllm_cfg_scale", True, "valid number"),
        ("dllm_logits_eos_inf", 2, "valid boolean"),
        ("dllm_logits_eos_inf", "true", "valid boolean"),
        ("dllm_logits_eos_inf", None, "valid boolean"),
        ("dllm_confidence_eos_eot_inf", -1, "valid boolean"),
        ("dllm_confidence_eos_eot_inf", [1], "valid boolean"),
        ("dllm_suffix_token_ids", "5", "valid list"),
        ("dllm_suffix_token_ids", None, "valid list"),
        ("dllm_suffix_token_ids", 5, "valid list"),
        ("dllm_eps", 0, "greater than 0"),
        ("dllm_eps", 1, "less than 1"),
        ("dllm_eps", float("nan"), "greater|less|finite"),
        ("dllm_eps", "0.1", "valid number"),
        ("dllm_alg_temp", -0.1, "greater than or equal to 0"),
        ("dllm_alg_temp", float("inf"), "finite number"),
        ("dllm_alg_temp", float("nan"), "finite number|greater"),
        ("dllm_alg_temp", "hot", "valid number"),
        ("dllm_block_length", 0, "greater than or equal to 1"),
        ("dllm_block_length", -32, "greater than or equal to 1"),
        ("dllm_block_length", 1_000_001, "less than or equal to 1000000"),
        ("dllm_block_length", 2**63, "less than or equal to 1000000"),
        ("dllm_block_length", 8.5, "valid integer"),
        ("dllm_block_length", True, "valid integer"),
    ],
)
def test_limits_of_fields_of_full_attention(
    field: str, value: Any, allowed: str
) -> None:
    """A number that fits no tensor raises in the worker, and ends it for everybody."""
    rule = rule_with(field.removeprefix("dllm_"))
    with pytest.raises(ValueError, match=allowed) as failure:
        wishes_of({"dllm_algorithm": rule, field: value}, FULL)
    assert f"{field}={value!r}" in str(failure.value)


@pytest.mark.parametrize(
    ("token", "allowed"),
    [
        (-1, "greater than or equal to 0"),
        (0.5, "valid integer"),
        ("5", "valid integer"),
        (True, "valid integer"),
        (100, "not in the vocabulary; allowed: 0 to 99"),
        (2**63, "not in the vocabulary; allowed: 0 to 99"),
    ],
)
def test_a_suffix_is_made_of_the_models_tokens(token: Any, allowed: str) -> None:
    """Any other one has no embedding, and ends the worker for everybody."""
    config = FULL.with_facts(FACTS.model_copy(update={"vocab_size": 100}))
    own = {"dllm_suffix_token_ids": [5, 99]}
    assert resolve(own, config, 10).suffix_token_ids == (5, 99)
    with pytest.raises(ValueError, match=allowed) as failure:
        wishes_of({"dllm_suffix_token_ids": [5, token]}, config)
    assert "dllm_suffix_token_ids" in str(failure.value)
    assert str(token) in str(failure.value)


@pytest.mark.parametrize("field", ["logits_eos_inf", "confidence_eos_eot_inf"])
@pytest.mark.parametrize(
    ("value", "meant"), [(0, False), (1, True), (False, False), (True, True)]
)
def test_flags_of_full_attention_may_be_numbers(
    field: str, value: Any, meant: bool
) -> None:
    """`vllm_xargs` turns a JSON boolean into 0 or 1."""
    assert getattr(resolve({f"dllm_{field}": value}, FULL, 10), field) is meant


@pytest.mark.parametrize("field", ["logits_eos_inf", "confidence_eos_eot_inf"])
def test_a_wish_about_an_end_that_nobody_knows_is_refused(field: str) -> None:
    """It would be granted in words alone."""
    config = FULL.with_facts(FACTS.model_copy(update={"eos_token_id": None}))
    with pytest.raises(ValueError, match=f"dllm_{field}=True.*eos_token_id"):
        wishes_of({f"dllm_{field}": True}, config)
    assert getattr(wishes_of({f"dllm_{field}": 0}, config), field) is False


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("rule", [*RULES, *ALIASES])
def test_names_of_rules_mean_what_the_familys_authors_mean(
    architecture: str, rule: str
) -> None:
    """`threshold` is `>` for LLaDA2 and SDAR, `>=` for Fast-dLLM; `entropy` is one of
    Dream's own rules in Dream's scripts."""
    family = FAMILIES[architecture]
    facts = family.facts
    base = {"mask_token_id": 255, "block_size": 32}
    config = DllmConfig.build(base, facts=facts)
    meant = ALIASES.get(rule, rule)
    if facts.full_attention and meant == "threshold":
        meant = "confidence_threshold"
    if architecture == "DreamModel" and meant == "entropy":
        meant = "neg_entropy"
    assert resolve({"dllm_algorithm": rule}, config, 64).algorithm == meant


def test_a_rule_that_a_family_calls_otherwise_has_its_own_fields() -> None:
    """Those of the rule of that name would be accepted, and not read."""
    own = {"dllm_algorithm": "threshold", "dllm_threshold": 0.5}
    assert resolve(own, FULL, 64).parameters == {"threshold": 0.5}
    with pytest.raises(ValueError, match=r"dllm_steps=4 .*'threshold', which uses"):
        resolve({**own, "dllm_steps": 4}, FULL, 64)
    facts = FACTS.model_copy(update={"rule_names": {"entropy": "neg_entropy"}})
    own = {"dllm_algorithm": "entropy", "dllm_alg_temp": 0.5, "dllm_eps": 0.1}
    assert resolve(own, FULL.with_facts(facts), 64).parameters["alg_temp"] == 0.5
    with pytest.raises(ValueError, match=r"dllm_alg_temp=0.5 .*'entropy'"):
        resolve(own, FULL, 64)


def test_a_block_of_credit_is_no_longer_than_its_table() -> None:
    """It keeps a number for each pair of positions: of a long answer, gigabytes."""
    own = {"dllm_algorithm": "credit"}
    long = FULL.with_facts(FACTS.model_copy(update={"max_model_len": 2000}))
    longest = {**own, "dllm_block_length": MAX_CREDIT_BLOCK}
    assert resolve(longest, long, 1000).block_length == MAX_CREDIT_BLOCK
    assert resolve(own, WHOLE, MAX_CREDIT_BLOCK).block_length == MAX_CREDIT_BLOCK
    said = f"block_length={MAX_CREDIT_BLOCK + 1} .*'credit'; allowed: 1 to 256"
    with pytest.raises(ValueError, match=said):
        wishes_of({**own, "dllm_block_length": MAX_CREDIT_BLOCK + 1}, long)
    with pytest.raises(ValueError, match=said):
        resolve(own, WHOLE, MAX_CREDIT_BLOCK + 1)
    assert resolve({"dllm_block_length": 999}, long, 1000).block_length == 999


def plan(max_tokens: int, prompt_len: int = 10, **own: Any) -> span.Plan:
    fields = {f"dllm_{name}": value for name, value in own.items()}
    params = resolve(fields, FULL, max_tokens)
    return plan_of(params, FULL, prompt_len, max_tokens)


def test_the_plan_of_a_request_is_its_models() -> None:
    """Scheduler and worker both make it from this, and have to make the same."""
    assert plan(40) == span.FullAttention(span.Grid(10, 32, 74), "none")
    assert plan(40, block_length=7, cache="dual") == span.FullAttention(
        span.Grid(10, 7, 52), "dual"
    )
    assert plan(190).grid.end == 200  # of max_model_len
    causal = plan_of(resolve(None, CONFIG, 40), CONFIG, 10, 40)
    assert causal == span.BlockCausal(span.Grid(0, 8, span.UNBOUNDED))


@pytest.mark.parametrize(("max_tokens", "twin"), [(40, 80), (6, 48), (190, 208)])
def test_the_branch_without_the_prompt_begins_on_a_page(
    max_tokens: int, twin: int
) -> None:
    """A page of both branches would hold keys of one of them."""
    guided = plan(max_tokens, cfg_scale=0.5)
    assert isinstance(guided, span.FullAttention)
    assert guided.twin == twin
    assert guided.grid == plan(max_tokens).grid
    assert plan(max_tokens, cfg_scale=0.0) == plan(max_tokens)


def test_the_canvas_of_an_infilling_ends_where_its_suffix_begins() -> None:
    """Masks between the two would be text that nobody is shown."""
    infilled = plan(40, suffix_token_ids=[7] * 9)
    assert infilled == span.FullAttention(span.Grid(10, 32, 50), "none", suffix=9)
    guided = plan(40, suffix_token_ids=[7] * 9, cfg_scale=0.5)
    assert guided == infilled._replace(twin=64)  # 59, on a page


def check_length_of(
    own: dict[str, Any] | None, config: DllmConfig, prompt_len: int, max_tokens: int
) -> None:
    params = SamplingParams(max_tokens=max_tokens, extra_args=own)
    check_length(params, config, prompt_len)


def test_a_request_that_no_forward_can_hold_is_refused_with_its_numbers() -> None:
    """It would wait for ever: full attention forwards it whole or not at all."""
    check_length_of(None, FULL, 50, 96)
    with pytest.raises(ValueError) as failure:
        check_length_of(None, FULL, 60, 65)
    message = str(failure.value)
    assert "the prompt (60 tokens) and the canvas (96 tokens" in message
    assert "max_tokens=65 in blocks of 32" in message
    assert "are 156 tokens" in message
    assert "allowed: 150 (max_num_batched_tokens)" in message
    assert "smaller max_tokens" in message
    assert "cfg_scale" not in message
    # A shorter block fits: its canvas is rounded up to less.
    check_length_of({"dllm_block_length": 5}, FULL, 60, 65)


def test_a_suffix_needs_room_beside_prompt_and_canvas() -> None:
    """A step forwards it too, and its keys need pages."""
    own = {"dllm_suffix_token_ids": [7] * 50}
    check_length_of(own, FULL, 50, 50)
    with pytest.raises(ValueError) as failure:
        check_length_of(own, FULL, 50, 51)
    message = str(failure.value)
    assert (
        "max_tokens=51 in blocks of 32) and the suffix (50 tokens) are 151" in message
    )
    assert "allowed: 150 (max_num_batched_tokens)" in message
    with pytest.raises(ValueError, match=r"the suffix .* are 212 tokens"):
        check_length_of({**own, "dllm_cfg_scale": 0.5}, FULL, 20, 30)


def test_a_guided_request_needs_the_room_twice() -> None:
    """Its second branch would be forwarded past the buffers, or have no pages."""
    own = {"dllm_cfg_scale": 0.5}
    check_length_of(own, FULL, 32, 32)  # 64 and 64
    check_length_of(None, FULL, 50, 64)
    with pytest.raises(ValueError) as failure:
        check_length_of(own, FULL, 50, 30)
    message = str(failure.value)
    assert "the canvas (32 tokens" in message
    assert ", twice with dllm_cfg_scale=0.5 are 178 tokens" in message  # 82, on 96
    assert "allowed: 150 (max_num_batched_tokens)" in message
    facts = FACTS.model_copy(update={"max_num_batched_tokens": 1000})
    check_length_of(own, FULL.with_facts(facts), 50, 30)
    with pytest.raises(ValueError, match=r"allowed: 200 \(max_model_len\)"):
        check_length_of(own, FULL.with_facts(facts), 80, 30)


def test_the_length_of_a_block_causal_request_is_vllms_to_check() -> None:
    """Its prompt is forwarded in parts, so a budget is no limit of it."""
    facts = Facts(max_model_len=200, max_num_batched_tokens=16)
    check_length_of(None, CONFIG.with_facts(facts), 190, 5)


def test_a_check_of_the_length_is_one_of_our_fields_too() -> None:
    """What only the length of the answer shows would be found by the worker."""
    facts = FACTS.model_copy(update={"max_model_len": 2000})
    own = {"dllm_algorithm": "credit"}
    with pytest.raises(ValueError, match="'credit'"):
        check_length_of(own, WHOLE.with_facts(facts), 5, 300)
