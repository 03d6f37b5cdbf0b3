"""Pages and budgets: what a server accepts at its start, it can schedule."""

from typing import Any

import pytest

from tests.engine_config import engine_config
from vllm_dllm.config import DllmConfig

SDAR, LLADA, DREAM = "sdar-pub1", "llada-pub0", "dream-pub0"
BLOCK = 16  # of sdar-pub1


def configured(model: str, **options: Any) -> Any:
    return engine_config(model, max_model_len=256, max_num_seqs=4, **options)


BUDGETS = [
    "max_num_batched_tokens",
    "max_num_scheduled_tokens",
    "long_prefill_token_threshold",
]


@pytest.mark.parametrize("field", BUDGETS)
def test_a_step_has_room_for_a_finished_block_and_a_canvas(field: str) -> None:
    """With less nothing would ever be scheduled: a request waits for ever, without a
    word."""
    for tokens in (4, BLOCK, 2 * BLOCK - 1):
        said = rf"{field}={tokens} is less than 32, twice the diffusion block size 16"
        with pytest.raises(ValueError, match=said):
            configured(SDAR, **{field: tokens})
    config = configured(SDAR, **{field: 2 * BLOCK})
    assert getattr(config.scheduler_config, field) == 2 * BLOCK


@pytest.mark.parametrize("budget", [31, 255])
def test_prompts_that_are_not_to_be_split_fit_a_step(budget: int) -> None:
    """A longer one would wait for ever."""
    options = {"enable_chunked_prefill": False, "max_num_batched_tokens": 256}
    with pytest.raises(ValueError, match=rf"max_num_scheduled_tokens={budget} is less"):
        configured(SDAR, max_num_scheduled_tokens=budget, **options)
    configured(SDAR, max_num_scheduled_tokens=256, **options)
    configured(SDAR, max_num_scheduled_tokens=32)


@pytest.mark.parametrize("field", BUDGETS[:2])
def test_with_full_attention_a_step_has_room_for_the_shortest_request(
    field: str,
) -> None:
    """Every request would be refused, one by one."""
    for tokens in (4, 32):
        said = f"{field}={tokens} is less than 33, a prompt of one token"
        with pytest.raises(ValueError, match=said):
            configured(LLADA, **{field: tokens})
    facts = DllmConfig.of(configured(LLADA, **{field: 33}).model_config).facts
    assert getattr(facts, field) == 33
    # Where a block is the whole answer, it may be of one token.
    configured(DREAM, **{field: 4})


def test_a_block_longer_than_the_longest_request_needs_its_room() -> None:
    """A server of short requests would not start: the block is cut at their end."""
    config = engine_config(LLADA, max_model_len=20, max_num_batched_tokens=20)
    assert config.scheduler_config.max_num_batched_tokens == 20
    with pytest.raises(ValueError, match="=19 is less than 20"):
        engine_config(LLADA, max_model_len=20, max_num_scheduled_tokens=19)


def test_the_engine_knows_both_budgets() -> None:
    """A request between the two would pass the check and wait for ever."""
    facts = DllmConfig.of(configured(LLADA).model_config).facts
    assert facts.max_num_scheduled_tokens > 256
    config = configured(LLADA, max_num_scheduled_tokens=100)
    assert DllmConfig.of(config.model_config).facts.max_num_scheduled_tokens == 100


@pytest.mark.parametrize("model", [SDAR, LLADA])
def test_the_longest_request_is_known_before_the_memory(model: str) -> None:
    """vLLM would shorten it when the engine is built, and requests would be checked
    against the longer one."""
    with pytest.raises(ValueError, match="--max-model-len auto"):
        engine_config(model, max_model_len=-1)


@pytest.mark.parametrize(("block", "page", "better"), [(16, 24, 32), (32, 48, 64)])
def test_a_page_that_ends_inside_a_block_is_refused(
    block: int, page: int, better: int
) -> None:
    """It would be shared with keys that are not final."""
    own = {"dllm": {"block_size": block}}
    with pytest.raises(ValueError, match=rf"--block-size {page} .* use {better} or"):
        configured(SDAR, additional_config=own, block_size=page)
    config = configured(SDAR, additional_config=own, block_size=better)
    assert config.cache_config.block_size == better
