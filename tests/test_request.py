"""One request settled against its server: rule, block, steps, and what is forwarded."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from tests.wishes import CONFIG, FACTS, FULL, WHOLE, with_grammar
from vllm_dllm import span
from vllm_dllm.admission import check_sampling_params
from vllm_dllm.config import DllmConfig
from vllm_dllm.decoding.registry import ALIASES, RULES, get_rule
from vllm_dllm.models.registry import FAMILIES
from vllm_dllm.params import FULL_ATTENTION_FIELDS, NUMERIC_FIELDS
from vllm_dllm.request import (
    MAX_CREDIT_BLOCK,
    Decoding,
    decoding_of,
    plan_of,
    resolve,
    wishes_of,
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


TIME_GRIDS = [rule for rule in RULES if "time" in get_rule(rule).needs]


@pytest.mark.parametrize("rule", TIME_GRIDS)
def test_steps_that_decide_nothing_are_capped(rule: str) -> None:
    """Of a million steps for ten tokens almost all would decide nothing: an hour of the
    whole server for one request."""
    own = {"dllm_algorithm": rule}
    for config in (FULL, WHOLE, CONFIG):
        for steps in (4097, 1_000_000):
            with pytest.raises(ValueError, match=f"dllm_steps={steps} .*'{rule}'") as e:
                resolve({**own, "dllm_steps": steps}, config, 10)
            assert "allowed: 1 to 4096 for a block" in str(e.value)
        decoding = resolve({**own, "dllm_steps": 4096}, config, 10)
        assert decoding.parameters["steps"] == 4096
    with pytest.raises(ValueError, match="dllm_steps=4097"):
        wishes_of({**own, "dllm_steps": 4097}, CONFIG)  # the length has no part in it


def test_a_long_block_may_take_a_step_for_each_token() -> None:
    """One token per step is what the authors decode with."""
    long = WHOLE.with_facts(FACTS.model_copy(update={"max_model_len": 10_000}))
    for own in (None, {"dllm_steps": 8000}):
        assert resolve(own, long, 8000).parameters["steps"] == 8000
    with pytest.raises(ValueError, match="allowed: 1 to 8000 for a block"):
        resolve({"dllm_steps": 8001}, long, 8000)


def test_steps_are_capped_per_block() -> None:
    """Steps of a long answer are many, and few for each of its blocks."""
    own = {"dllm_algorithm": "origin", "dllm_block_length": 10}
    assert resolve({**own, "dllm_steps": 8192}, FULL, 20).parameters["steps"] == 4096
    with pytest.raises(ValueError, match=r"are 4097 steps for a block of 10"):
        resolve({**own, "dllm_steps": 8194}, FULL, 20)


def test_steps_of_the_server_are_no_ground_for_refusal() -> None:
    """Whoever asks for another rule would have to ask for other steps too."""
    config = FULL.model_copy(update={"steps": 1_000_000})
    decoding = resolve({"dllm_algorithm": "origin"}, config, 10)
    assert decoding.parameters["steps"] == 4096


@pytest.mark.parametrize("length", [201, 1_000_000])
def test_a_block_longer_than_any_answer_is_refused(length: int) -> None:
    """Tables of the worker are as wide as the longest block: gigabytes for one body."""
    said = rf"dllm_block_length={length} .*; allowed: 1 to 200 \(max_model_len\)"
    with pytest.raises(ValueError, match=said):
        wishes_of({"dllm_block_length": length}, FULL)
    assert resolve({"dllm_block_length": 200}, FULL, 200).block_length == 200


@pytest.mark.parametrize(
    ("block", "max_tokens", "expected"),
    [
        (32, 10, 32),
        (128, 10, 128),
        (129, 10, 128),
        (2000, 10, 128),
        (2000, 700, 700),
        (2000, 2500, 2000),
    ],
)
def test_a_long_block_is_no_longer_than_the_answer(
    block: int, max_tokens: int, expected: int
) -> None:
    """Thousands of masks would be decoded, one by one, for ten tokens."""
    long = FULL.with_facts(FACTS.model_copy(update={"max_model_len": 10_000}))
    decoding = resolve({"dllm_block_length": block}, long, max_tokens)
    assert decoding.block_length == expected
    assert decoding.parameters["steps"] == expected
    grid = plan_of(decoding, long, 5, max_tokens).grid
    assert grid.end - grid.origin == -(-max_tokens // expected) * expected
    wished = long.model_copy(update={"block_size": block})
    assert resolve(None, wished, max_tokens) == decoding


def test_no_block_is_longer_than_its_grid() -> None:
    """The worker makes room for whole blocks."""
    infilled = plan(10, suffix_token_ids=[7] * 9)
    assert infilled.grid == span.Grid(10, 10, 20)
    near_the_end = plan(10, prompt_len=190, block_length=64)
    assert near_the_end.grid == span.Grid(190, 10, 200)
