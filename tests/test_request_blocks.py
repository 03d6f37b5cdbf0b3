"""Blocks and steps of a settled request, and what its steps forward."""

from typing import Any

import pytest

from tests.wishes import CONFIG, FACTS, FULL, WHOLE
from vllm_dllm.config import DllmConfig
from vllm_dllm.decoding.registry import RULES, get_rule
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.plans.grid import UNBOUNDED, Grid
from vllm_dllm.request import (
    MAX_CREDIT_BLOCK,
    plan_of,
    resolve,
    wishes_of,
)


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


def plan(max_tokens: int, prompt_len: int = 10, **own: Any) -> Plan:
    fields = {f"dllm_{name}": value for name, value in own.items()}
    params = resolve(fields, FULL, max_tokens)
    return plan_of(params, FULL, prompt_len, max_tokens)


def test_the_plan_of_a_request_is_its_models() -> None:
    """Scheduler and worker both make it from this, and have to make the same."""
    assert plan(40) == FullAttention(Grid(10, 32, 74), "none")
    assert plan(40, block_length=7, cache="dual") == FullAttention(
        Grid(10, 7, 52), "dual"
    )
    assert plan(190).grid.end == 200  # of max_model_len
    causal = plan_of(resolve(None, CONFIG, 40), CONFIG, 10, 40)
    assert causal == BlockCausal(Grid(0, 8, UNBOUNDED))


@pytest.mark.parametrize(("max_tokens", "branch"), [(40, 80), (6, 48), (190, 208)])
def test_the_branch_without_the_prompt_begins_on_a_page(
    max_tokens: int, branch: int
) -> None:
    """A page of both branches would hold keys of one of them."""
    guided = plan(max_tokens, cfg_scale=0.5)
    assert isinstance(guided, FullAttention)
    assert guided.branch == branch
    assert guided.grid == plan(max_tokens).grid
    assert plan(max_tokens, cfg_scale=0.0) == plan(max_tokens)


def test_the_canvas_of_an_infilling_ends_where_its_suffix_begins() -> None:
    """Masks between the two would be text that nobody is shown."""
    infilled = plan(40, suffix_token_ids=[7] * 9)
    assert infilled == FullAttention(Grid(10, 32, 50), "none", suffix=9)
    guided = plan(40, suffix_token_ids=[7] * 9, cfg_scale=0.5)
    assert guided == infilled._replace(branch=64)  # 59, on a page


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


def test_the_last_block_ends_with_the_answer_where_the_authors_cut_it() -> None:
    """Masks past the end are seen by the tokens before it."""
    facts = FACTS.model_copy(
        update={"attention": "block_causal", "cuts_last_block": True}
    )
    for config, end in ((CONFIG, UNBOUNDED), (CONFIG.with_facts(facts), 23)):
        grid = plan_of(resolve(None, config, 13), config, 10, 13).grid
        assert grid == Grid(0, config.block, end)


def test_no_block_is_longer_than_its_grid() -> None:
    """The worker makes room for whole blocks."""
    infilled = plan(10, suffix_token_ids=[7] * 9)
    assert infilled.grid == Grid(10, 10, 20)
    near_the_end = plan(10, prompt_len=190, block_length=64)
    assert near_the_end.grid == Grid(190, 10, 200)
