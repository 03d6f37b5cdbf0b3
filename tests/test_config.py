"""Server-wide choices: their limits, and how they reach every process."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.params import DllmParams, RuleParams

BASE = {"block_size": 4, "mask_token_id": 255}


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("block_size", 0, "greater than or equal to 1"),
        ("block_size", 4097, "less than or equal to 4096"),
        ("block_size", "8", "valid integer"),
        ("block_size", True, "valid integer"),
        ("mask_token_id", -1, "greater than or equal to 0"),
        ("threshold", 1.5, "less than or equal to 1"),
        ("threshold", float("nan"), "finite number"),
        ("threshold", "0.5", "valid number"),
        ("steps", 0, "greater than or equal to 1"),
        ("steps", 2.5, "valid integer"),
        ("algorithm", "fastest", "supported: .*threshold"),
        ("block_size", -8, "greater than or equal to 1"),
        ("block_size", 2.5, "valid integer"),
        ("mask_token_id", 1.5, "valid integer"),
        ("steps", 1_000_001, "less than or equal to 1000000"),
        ("max_post_steps", 4097, "less than or equal to 4096"),
        ("local_leap_radius", 2**63, "less than or equal to 1000000"),
        ("factor", 0, "greater than 0"),
        ("entropy_bound", float("inf"), "finite number"),
        ("cap_steps", 1, "valid boolean"),
        ("blocksize", 4, "^unknown field dllm.blocksize.*known: .*dllm.block_size"),
        ("max_nfe", 4, "^unknown field"),  # a choice of requests alone
    ],
)
def test_a_refusal_names_field_value_and_what_is_allowed(
    field: str, value: Any, allowed: str
) -> None:
    """A server that does not start should say which of its flags is to blame."""
    with pytest.raises(ValueError, match=allowed) as failure:
        DllmConfig.build(BASE, {field: value})
    assert f"dllm.{field}={value!r}" in str(failure.value)


@pytest.mark.parametrize("field", ["block_size", "mask_token_id"])
def test_what_nobody_said_is_asked_for(field: str) -> None:
    """A guessed mask token decodes noise."""
    known = {name: value for name, value in BASE.items() if name != field}
    with pytest.raises(ValueError, match=rf"^dllm\.{field} is not given"):
        DllmConfig.build(known)


def test_later_sources_win_and_none_is_no_value() -> None:
    """A source that does not know a field would erase what an earlier one said."""
    config = DllmConfig.build(
        BASE, {"block_size": None, "threshold": 0.5}, {"threshold": 0.25}
    )
    assert config.block_size == 4
    assert config.threshold == 0.25


def test_steps_follow_the_block_size_that_won() -> None:
    """Steps of another block size would force tokens on the model, or idle."""
    assert DllmConfig.build(BASE, {"block_size": 16}).steps == 16
    assert DllmConfig.build(BASE, {"block_size": 16, "steps": 3}).steps == 3


def test_an_alias_is_replaced_by_the_rules_own_name() -> None:
    """The worker would look for a rule that is in no table."""
    config = DllmConfig.build(BASE, {"algorithm": "low_confidence_static"})
    assert config.algorithm == "low_confidence"


def test_the_config_cannot_be_changed_afterwards() -> None:
    """The server's processes hold copies, which would differ from then on."""
    with pytest.raises(ValueError, match="frozen"):
        DllmConfig.build(BASE).block_size = 8


FULL = Facts(attention="full", rule_names={"threshold": "confidence_threshold"})


def test_facts_arrive_in_every_process() -> None:
    """A worker without them would run the model as a block-causal one."""
    facts = FULL.model_copy(
        update={"eos_token_id": 1, "stop_token_ids": [1, 7], "max_model_len": 77}
    )
    config = DllmConfig.build({"mask_token_id": 255, "cache": "dual"}, facts=facts)
    model = SimpleNamespace(hf_config=SimpleNamespace())
    config.attach(model)
    sent = json.loads(json.dumps(model.hf_config.dllm))  # config.json can hold it
    arrived = DllmConfig.of(SimpleNamespace(hf_config=SimpleNamespace(dllm=sent)))
    assert arrived == config
    assert arrived.facts == facts
    assert (arrived.cache, arrived.block_size, arrived.steps) == ("dual", None, None)


def test_a_config_that_arrived_is_read_once() -> None:
    """Two models of pydantic would be validated at every request."""
    model = SimpleNamespace(hf_config=SimpleNamespace())
    DllmConfig.build(BASE).attach(model)
    first = DllmConfig.of(model)
    assert DllmConfig.of(model) is first
    DllmConfig.build(BASE, {"threshold": 0.5}).attach(model)
    assert DllmConfig.of(model).threshold == 0.5
    assert first.threshold == 0.9


def test_a_copy_with_other_facts_leaves_the_first_as_it_was() -> None:
    """Two engines of one process would share theirs."""
    first = DllmConfig.build(BASE)
    second = first.with_facts(FULL)
    assert first.facts == Facts() and second.facts == FULL
    assert first != second
    assert first.model_dump() == second.model_dump()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("facts", {"attention": "full"}),
        ("_facts", {"attention": "full"}),
        ("full_attention", True),
        ("shifted_logits", True),
        ("eos_token_id", 3),
        ("page_size", 16),
    ],
)
def test_facts_are_not_for_a_user_to_choose(field: str, value: Any) -> None:
    """A block-causal model with full attention answers nonsense."""
    with pytest.raises(ValueError, match=f"^unknown field dllm.{field}="):
        DllmConfig.build(BASE, {field: value})


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("cache", "both", "'none', 'prefix' or 'dual'"),
        ("cache", True, "'none', 'prefix' or 'dual'"),
        ("eps", 0, "greater than 0"),
        ("eps", 1, "less than 1"),
        ("alg_temp", -1, "greater than or equal to 0"),
        ("alg_temp", float("inf"), "finite number"),
        ("block_size", 0, "greater than or equal to 1"),
        ("steps", 0, "greater than or equal to 1"),
        ("cfg_scale", 1.0, "^unknown field"),  # a choice of requests alone
    ],
)
def test_limits_of_the_choices_of_full_attention(
    field: str, value: Any, allowed: str
) -> None:
    """A server that does not start should say which of its flags is to blame."""
    with pytest.raises(ValueError, match=allowed) as failure:
        DllmConfig.build({"mask_token_id": 255}, {field: value}, facts=FULL)
    assert f"dllm.{field}={value!r}" in str(failure.value)


def test_with_full_attention_neither_block_nor_steps_need_be_said() -> None:
    """A block of a size that nobody asked for is another order, and other tokens."""
    config = DllmConfig.build({"mask_token_id": 255}, facts=FULL)
    assert (config.block_size, config.steps, config.cache) == (None, None, "none")
    config = DllmConfig.build({"mask_token_id": 255, "block_size": 32}, facts=FULL)
    assert (config.block_size, config.steps) == (32, None)


def test_defaults_of_requests_are_the_servers_choices() -> None:
    """What is left out here would be the default of the plugin for every request."""
    config = DllmConfig.build({**BASE, "eps": 0.5, "cache": "dual"}, facts=FULL)
    defaults = config.request_defaults()
    fields = RuleParams.model_fields
    unset = {name for name, field in fields.items() if field.get_default() is None}
    assert defaults.keys() == {*fields, "cache"} - unset
    assert (defaults["eps"], defaults["cache"]) == (0.5, "dual")
    assert defaults.keys() <= DllmParams.model_fields.keys()
