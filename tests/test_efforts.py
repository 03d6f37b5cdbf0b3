"""The knob for effort chooses a preset, but not against what a request itself says."""

from typing import Any

import pytest

from tests.wishes import CONFIG, FULL, WHOLE
from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.efforts import check_efforts, fields_of_effort
from vllm_dllm.serving.lift import lift

SLOW = {"low": {"algorithm": "sequential"}, "high": {"threshold": 1.0}}


def with_efforts(efforts: dict[str, Any]) -> DllmConfig:
    return DllmConfig.build(CONFIG.model_dump(), {"efforts": efforts}, facts=Facts())


@pytest.mark.parametrize(
    ("effort", "threshold"),
    [("none", 0.5), ("low", 0.5), ("medium", 0.8), ("high", 0.95), ("minimal", 0.5)],
)
def test_an_effort_is_a_documented_preset(effort: str, threshold: float) -> None:
    """A client with this knob alone would have none for diffusion."""
    fields = lift({"reasoning_effort": effort}, CONFIG)
    assert fields == {"dllm_algorithm": "threshold", "dllm_threshold": threshold}


def test_with_full_attention_a_high_effort_is_the_authors_rule() -> None:
    """There the server decodes one token per forward, and nothing is more careful."""
    fast = {"dllm_algorithm": "threshold", "dllm_threshold": 0.5}
    check_efforts(FULL)
    assert lift({"reasoning_effort": "none"}, FULL) == fast
    assert lift({"reasoning_effort": "low", "dllm_cache": "dual"}, FULL) == {
        "dllm_cache": "dual",
        **fast,
    }
    medium = lift({"reasoning_effort": "medium"}, FULL)
    assert medium == {"dllm_algorithm": "threshold", "dllm_threshold": 0.9}
    assert lift({"reasoning_effort": "high"}, FULL) == {}
    assert lift({"reasoning_effort": "low", "steps": 3}, FULL) == {"dllm_steps": 3}


@pytest.mark.parametrize(
    "own",
    [
        {"dllm_threshold": 0.7},
        {"algorithm": "entropy"},
        {"factor": 0.5},
        {"remasking": "random"},
        {"steps": 3},
    ],
)
def test_what_a_request_says_itself_wins(own: dict[str, Any]) -> None:
    """A preset beside it would contradict it, or change what it asks for."""
    assert lift({"reasoning_effort": "low", **own}, CONFIG) == lift(own, CONFIG)


def test_a_field_that_is_no_rules_leaves_the_effort() -> None:
    """Whoever limits the forwards of all requests would have no knob."""
    fields = lift({"reasoning_effort": "low", "max_nfe": 9}, CONFIG)
    assert fields["dllm_threshold"] == 0.5 and fields["dllm_max_nfe"] == 9


@pytest.mark.parametrize(
    "config",
    [
        WHOLE,
        FULL.model_copy(update={"algorithm": "threshold"}),
        CONFIG.model_copy(update={"algorithm": "joint_threshold"}),
        CONFIG.model_copy(update={"efforts": {}}),
    ],
    ids=["Dream", "LLaDA with another rule", "another rule", "none wanted"],
)
def test_where_presets_do_not_fit_an_effort_changes_nothing(config: DllmConfig) -> None:
    """They were not measured there; a server's own rule was chosen on purpose."""
    assert lift({"reasoning_effort": "low"}, config) == {}


def test_a_server_has_its_own_mapping() -> None:
    """Thresholds of one model are not those of another."""
    config = with_efforts(SLOW)
    check_efforts(config)
    assert fields_of_effort("low", {}, config) == {"dllm_algorithm": "sequential"}
    assert fields_of_effort("max", {}, config) == {"dllm_threshold": 1.0}
    assert fields_of_effort("medium", {}, config) == {}


def test_an_unknown_effort_is_named() -> None:
    """It would be ignored in a completion, where vLLM does not know the field."""
    for effort in ("extreme", 3, ["low"]):
        with pytest.raises(ValueError, match=r"reasoning_effort=.*allowed: none, low"):
            lift({"reasoning_effort": effort}, CONFIG)


def test_a_mapping_that_no_request_could_have_ends_the_start() -> None:
    """Each request with that effort would be a 400."""
    with pytest.raises(ValueError, match=r"efforts, 'low': .*dllm_threshold=7"):
        check_efforts(with_efforts({"low": {"threshold": 7.0}}))
    with pytest.raises(ValueError, match="efforts, 'low': unknown field dllm_speed"):
        check_efforts(with_efforts({"low": {"speed": 7}}))
    with pytest.raises(ValueError, match=r"dllm\.efforts"):
        with_efforts({"lowest": {}})
