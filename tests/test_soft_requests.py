"""Who may have soft tokens: which requests, and which servers."""

import pytest

from tests.engine_config import engine_config
from tests.wishes import CONFIG, FULL, with_grammar
from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.models import sources
from vllm_dllm.request import decoding_of, wishes_of

DMAX = {"dllm_algorithm": "dmax"}


def test_models_with_full_attention_have_none() -> None:
    """A rule that is defined nowhere would be answered with something."""
    with pytest.raises(ValueError, match="dllm_algorithm='dmax' is for block-causal"):
        wishes_of(DMAX, FULL)


def test_an_engine_that_is_compiled_for_token_ids_has_none() -> None:
    """Its graph would be given embeddings, and go on with the ids of another step."""
    config = CONFIG.with_facts(Facts(soft_tokens=False))
    with pytest.raises(ValueError, match=r"'dmax' gives.*\"soft_tokens\": true") as no:
        wishes_of(DMAX, config)
    assert "\n" not in str(no.value)
    assert wishes_of({"dllm_algorithm": "threshold"}, config).algorithm == "threshold"


def test_several_blocks_are_referred_to_what_was_measured() -> None:
    """A user of DMax checkpoints would not find how to decode several blocks."""
    with pytest.raises(
        ValueError, match=r"dllm_buffer_size=2 .*joint_threshold is what"
    ):
        wishes_of(DMAX | {"dllm_buffer_size": 2}, CONFIG)


def test_a_grammar_is_followed_whole() -> None:
    """What a grammar allows behind a token that may change is not known."""
    server = CONFIG.model_copy(update={"algorithm": "dmax"})
    assert decoding_of(with_grammar(), server, 20).algorithm == "threshold"
    assert decoding_of(with_grammar(**DMAX), CONFIG, 20).algorithm == "threshold"


@pytest.mark.parametrize(
    ("on_cpu", "dllm", "eager", "allowed"),
    [
        (True, {}, False, True),
        (False, {}, True, True),
        (False, {}, False, False),
        (False, {"algorithm": "dmax"}, False, True),
        (False, {"soft_tokens": True}, False, True),
        (True, {"soft_tokens": False}, True, False),
    ],
)
def test_servers_allow_them_where_they_cost_nothing_or_are_asked_for(
    on_cpu: bool,
    dllm: dict[str, object],
    eager: bool,
    allowed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All requests would pay for a rule that none of them has."""
    config = engine_config("sdar-pub0", enforce_eager=eager)
    own = DllmConfig.of(config.model_config)
    assert own.facts.soft_tokens
    monkeypatch.setattr(sources.current_platform, "is_cpu", lambda: on_cpu)
    asked = own.model_copy(update=dllm)
    assert sources.may_have_soft_tokens(config, asked) == allowed


@pytest.mark.parametrize(
    ("model", "dllm", "said"),
    [
        ("llada-pub0", {"algorithm": "dmax"}, "dllm.algorithm='dmax' needs"),
        ("llada-pub0", {"soft_tokens": True}, "dllm.soft_tokens=True is for block-"),
        (
            "sdar-pub0",
            {"algorithm": "dmax", "soft_tokens": False},
            "dllm.algorithm='dmax' needs dllm.soft_tokens, which are switched off",
        ),
    ],
)
def test_a_server_that_could_not_have_its_own_rule_does_not_start(
    model: str, dllm: dict[str, object], said: str
) -> None:
    """It would refuse every request, one by one."""
    with pytest.raises(ValueError, match=said):
        engine_config(model, additional_config={"dllm": dllm})
