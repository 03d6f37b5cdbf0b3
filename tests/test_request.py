"""One request settled against its server: whose choices win, and which are refused."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from tests.wishes import CONFIG, FACTS, FULL, WHOLE, with_grammar
from vllm_dllm.admission import check_sampling_params
from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.decoding.registry import ALIASES, NAMES, RULES, get_rule
from vllm_dllm.given import NOTHING, Given
from vllm_dllm.models.registry import FAMILIES
from vllm_dllm.params import (
    BUFFER_FIELDS,
    FULL_ATTENTION_FIELDS,
    MAX_STEPS,
    NUMERIC_FIELDS,
)
from vllm_dllm.regimes import window
from vllm_dllm.regimes.registry import regime_of
from vllm_dllm.request import MAX_REMEMBERED, decoding_of, resolve, wishes_of
from vllm_dllm.settled import Decoding

OF_BUFFERS = {"buffer_size", *BUFFER_FIELDS}
"""Of whatever rule several blocks are asked of (test_request_buffers.py)."""


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
        given=NOTHING,
        return_trajectory=False,
        return_step_maps=False,
        return_rest=False,
        stream_drafts=False,
        buffer_size=1,
        add_block_threshold=0.1,
        token_stability_threshold=0.0,
        delimiter_ids=(),
        busy_threshold=None,
        in_runs=False,
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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("field", sorted(NUMERIC_FIELDS.keys() - OF_BUFFERS))
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


@pytest.mark.parametrize("rule", RULES)
def test_the_servers_values_are_no_ground_for_refusal(rule: str) -> None:
    """A server-wide threshold would forbid every rule without one."""
    assert wishes_of({"dllm_algorithm": rule}, CONFIG).algorithm == rule


@pytest.mark.parametrize("max_tokens", [3, 50])
def test_structured_output_has_the_rule_that_is_asked_for(max_tokens: int) -> None:
    """What other requests may ask for, clients send with structured ones too. A short
    answer is no reason to take several tokens at once that a grammar may not allow."""
    for config in (CONFIG, FULL):
        config = config.model_copy(update={"cap_steps": True, "steps": None})
        able = {"delete_token_id": 7, "split_token_id": 8, "soft_tokens": True}
        config = config.with_facts(config.facts.model_copy(update=able))
        full = {*NAMES} - {"dmax", "linear_spec"}
        names = full if config.facts.full_attention else RULES
        for rule in names:
            decoding = decoding_of(
                with_grammar(dllm_algorithm=rule), config, max_tokens
            )
            other = rule not in RULES or get_rule(rule).revises
            asked = {"dllm_algorithm": "threshold" if other else rule}
            assert decoding.algorithm == resolve(asked, config, max_tokens).algorithm
            assert decoding.in_runs == (rule != "sequential")
            block = decoding.block_length
            assert decoding.parameters.get("steps", block) == block
        several = with_grammar(dllm_algorithm="sequential", dllm_steps=1)
        assert decoding_of(several, config, max_tokens).in_runs


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
        ("canvas_token_ids", [5, *[-1] * 9, 7]),
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
    settled = resolve({f"dllm_{field}": value}, FULL, 10)
    if isinstance(value, list):
        first = 10 if "suffix" in field and value else 0
        assert settled.given == Given(first, tuple(value))
    else:
        assert getattr(settled, field) == value


def test_no_field_of_full_attention_is_missing_above() -> None:
    """A new one could be accepted in silence where it means nothing."""
    assert set(FULL_ATTENTION_FIELDS) == {
        "cache",
        "cfg_scale",
        "logits_eos_inf",
        "confidence_eos_eot_inf",
        "suffix_token_ids",
        "canvas_token_ids",
    }


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
    assert resolve(own, config, 10).given == Given(10, (5, 99))
    with pytest.raises(ValueError, match=allowed) as failure:
        wishes_of({"dllm_suffix_token_ids": [5, token]}, config)
    assert "dllm_suffix_token_ids" in str(failure.value)
    assert str(token) in str(failure.value)


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
    """`threshold` is `>` for LLaDA2 and SDAR, `>=` for Fast-dLLM and Stable-DiffCoder;
    `entropy` is one of Dream's own rules in Dream's scripts."""
    family = FAMILIES[architecture]
    moves = {"delete_token_id": 253, "split_token_id": 254}
    facts = family.facts.model_copy(update=moves)
    base = {"mask_token_id": 255, "block_size": 32}
    config = DllmConfig.build(base, facts=facts)
    meant = ALIASES.get(rule, rule)
    if get_rule(meant).softens and not regime_of(facts).has_soft_tokens:
        with pytest.raises(ValueError, match="'dmax' is for block-causal models"):
            resolve({"dllm_algorithm": rule}, config, 64)
        return
    inclusive = facts.full_attention or architecture in (
        "StableDiffcoderForCausalLM",
        "NemotronLabsDiffusionModel",
    )
    if inclusive and meant == "threshold":
        meant = "confidence_threshold"
    if architecture == "StableDiffcoderForCausalLM" and meant == "low_confidence":
        meant = "even_low_confidence"
    if architecture == "Fast_dLLM_QwenForCausalLM" and meant == "threshold":
        meant = "sub_block_threshold"
    if architecture in ("DreamModel", "DiffuLlamaModel") and meant == "entropy":
        meant = "neg_entropy"
    if facts.attention == "window" and meant == "sequential":
        meant = "leftmost"
    elif facts.attention == "window" and meant not in window.RULES:
        with pytest.raises(ValueError, match=f"{meant!r} is not defined in a window"):
            resolve({"dllm_algorithm": rule}, config, 64)
        return
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


def test_a_rule_that_moves_tokens_is_for_models_that_do() -> None:
    """No token of another model says so: it would be decoded as by joint_threshold."""
    own = {"dllm_algorithm": "JointThresholdInDel"}
    assert wishes_of(own, CONFIG).algorithm == "joint_threshold_indel"
    for facts in (Facts(), Facts(delete_token_id=253), Facts(split_token_id=254)):
        with pytest.raises(ValueError, match=r"'joint_threshold_indel' is for .*2\.2"):
            wishes_of(own, CONFIG.with_facts(facts))


@pytest.mark.parametrize(("block", "most"), [(8, 8183), (32, 2015), (255, 1)])
def test_a_rule_remembers_no_more_steps_than_there_is_room_for(
    block: int, most: int
) -> None:
    """The table that every slot has a part of would be larger than the machine."""
    own = {"dllm_algorithm": "joint_threshold_indel"}
    config = CONFIG.model_copy(update={"block_size": block})
    steps = min(most, MAX_STEPS)
    assert wishes_of({**own, "dllm_max_post_steps": steps}, config)
    remembered = get_rule("joint_threshold_indel").memory_steps(
        block, {"max_post_steps": steps}
    )
    assert block * remembered <= MAX_REMEMBERED
    if most < MAX_STEPS:
        refused = rf"dllm_max_post_steps={most + 1}: .*allowed: 0 to {most} with"
        with pytest.raises(ValueError, match=refused):
            wishes_of({**own, "dllm_max_post_steps": most + 1}, config)
    longer = config.model_copy(update={"block_size": 256})
    with pytest.raises(ValueError, match="not possible with blocks of 256 tokens"):
        wishes_of(own, longer)


def test_several_blocks_are_not_for_a_rule_that_moves_tokens() -> None:
    """A block that hands out nothing until it is done is no ground for the next."""
    own = {"dllm_algorithm": "joint_threshold_indel", "dllm_buffer_size": 2}
    with pytest.raises(ValueError, match=r"dllm_buffer_size=2 is not defined for"):
        wishes_of(own, CONFIG)
