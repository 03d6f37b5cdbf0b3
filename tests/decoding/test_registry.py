"""Names of decoding rules."""

import subprocess
import sys

import pytest

from tests.decoding.canvas_steps import uniform_row, written
from vllm_dllm.decoding.registry import ALIASES, RULES, canonical_name, get_rule
from vllm_dllm.params import DllmParams


@pytest.mark.parametrize("name", RULES)
def test_every_name_leads_to_a_rule(name: str) -> None:
    """A typing slip in the table would end the engine at the first request."""
    rule = get_rule(name)
    measure = [0.5, 0.75]
    row = uniform_row(measure, entropy=measure, margin=measure, noise=measure, step=1)
    assert written(rule, row) != [set()]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_names_parameters_that_requests_can_set(name: str) -> None:
    """A parameter that no request has would be refused for every request."""
    assert get_rule(name).parameters <= DllmParams.model_fields.keys()


def test_a_rule_is_made_once() -> None:
    """A rule per step would import a module on the hot path."""
    assert get_rule("threshold") is get_rule("threshold")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("low_confidence_static", "low_confidence"),
        ("low_confidence_dynamic", "threshold"),
        ("LowConfidence", "threshold"),  # SGLang's rule of that name has a threshold
        ("sequential", "sequential"),
        ("random", "random"),  # LLaDA's value of `remasking`
        ("entropy_bounded", "entropy_bounded"),
        ("JointThreshold", "joint_threshold"),
        ("hierarchy", "hierarchical"),  # dInfer's
    ],
)
def test_names_of_other_engines_mean_the_same_rule(alias: str, name: str) -> None:
    """A client that moves here would get another rule than it asked for."""
    assert canonical_name(alias) == name


def test_aliases_lead_to_rules_and_hide_none() -> None:
    """An alias spelled like a rule would make that rule unreachable."""
    assert set(ALIASES.values()) <= RULES.keys()
    assert ALIASES.keys().isdisjoint(RULES)


@pytest.mark.parametrize("name", ["", "Threshold", "treshold", "entropy_bound"])
def test_an_unknown_name_is_answered_with_all_known_ones(name: str) -> None:
    """'unknown rule' alone sends the user to the source code."""
    with pytest.raises(ValueError, match="unknown decoding rule") as failure:
        canonical_name(name)
    assert repr(name) in str(failure.value)
    for known in [*RULES, *ALIASES]:
        assert known in str(failure.value)


def test_rules_need_no_vllm() -> None:
    """A rule could no longer be tried, or tested, without an engine around it."""
    script = (
        "import sys\n"
        "from vllm_dllm.decoding.registry import RULES, get_rule\n"
        "for name in RULES: get_rule(name)\n"
        "assert 'vllm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
