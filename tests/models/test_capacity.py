"""Pages and budgets: what a server accepts at its start, it can schedule."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext

from tests.checkpoints import derived
from tests.engine_config import engine_config
from tests.golden_cases import GOLDEN
from vllm_dllm.config import DllmConfig
from vllm_dllm.models.graphs import capture_whole_blocks

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


@pytest.mark.parametrize(("block", "positions"), [(4, 1024), (32, 1024), (24, 1032)])
def test_rotary_tables_reach_the_end_of_the_last_block(
    block: int, positions: int
) -> None:
    """A canvas past the longest request would be rotated by garbage."""
    config = engine_config(
        "sdar-pub0", additional_config={"dllm": {"block_size": block}}
    )
    assert config.model_config.hf_config.max_position_embeddings == positions
    assert config.model_config.max_model_len == 1024


@pytest.mark.parametrize("page", [None, 16, 48])
@pytest.mark.parametrize("block", [None, 5, 32])
def test_with_full_attention_any_page_will_do(
    page: int | None, block: int | None
) -> None:
    """No page is shared, so that it may end inside a block."""
    own = {"dllm": {} if block is None else {"block_size": block}}
    options = {} if page is None else {"block_size": page}
    config = engine_config("dream-pub0", additional_config=own, **options)
    assert config.cache_config.block_size == (page or 32)
    assert DllmConfig.of(config.model_config).block_size == block
    assert config.diffusion_config.canvas_length == (block or 32)


def long_model(folder: Path, model: str) -> Path:
    """A checkpoint whose requests are longer than vLLM's default budget."""
    limits = {"max_sequence_length": 50_000, "max_position_embeddings": 50_000}
    name = next(iter(limits)) if model.startswith("llada-") else list(limits)[1]
    return derived(folder / "model", model, **{name: limits[name]})


@pytest.mark.parametrize("model", ["llada-pub0", "dream-pub0"])
@pytest.mark.parametrize("context", [None, *UsageContext])
def test_by_default_a_forward_holds_the_longest_request(
    tmp_path: Path, model: str, context: UsageContext | None
) -> None:
    """A request that is longer than the budget would wait for ever, or be refused."""
    args = EngineArgs(model=str(long_model(tmp_path, model)))
    config = args.create_engine_config(context)
    assert config.model_config.max_model_len == 50_000
    assert config.scheduler_config.max_num_batched_tokens >= 50_000
    budget = DllmConfig.of(config.model_config).facts.max_num_batched_tokens
    assert budget == config.scheduler_config.max_num_batched_tokens
    assert config.scheduler_config.max_num_seqs > 1


@pytest.mark.parametrize("tokens", [512, 2048])
def test_a_budget_that_the_operator_chose_is_kept(tmp_path: Path, tokens: int) -> None:
    """It was chosen for the memory there is; longer requests are refused one by one."""
    folder = long_model(tmp_path, "llada-pub0")
    config = engine_config(folder, max_num_batched_tokens=tokens)
    assert config.scheduler_config.max_num_batched_tokens == tokens
    facts = DllmConfig.of(config.model_config).facts
    assert (facts.max_num_batched_tokens, facts.max_model_len) == (tokens, 50_000)


def test_a_model_that_splits_prompts_keeps_vllms_budget(tmp_path: Path) -> None:
    """One forward of 50,000 tokens would take the memory of the KV cache."""
    block_causal = engine_config(long_model(tmp_path, "sdar-pub0"))
    assert block_causal.scheduler_config.max_num_batched_tokens < 50_000


def test_the_arguments_are_left_as_they_were() -> None:
    """vLLM goes on with them: a budget is one thing, to split prompts another."""
    args = EngineArgs(model=str(GOLDEN / "llada-pub0"))
    config = args.create_engine_config()
    like = EngineArgs(model=str(GOLDEN / "sdar-pub0"))
    other = like.create_engine_config().scheduler_config
    assert args.enable_chunked_prefill == like.enable_chunked_prefill
    ours = config.scheduler_config
    assert ours.enable_chunked_prefill == other.enable_chunked_prefill


@pytest.mark.parametrize("model", ["llada-pub0", "dream-pub0"])
def test_prompts_that_cannot_be_split_are_not_to_be(model: str) -> None:
    """A chunk of a prompt is never scheduled: the request would wait for ever."""
    with pytest.raises(
        ValueError, match=r"long_prefill_token_threshold=64 .*full attention"
    ):
        engine_config(model, long_prefill_token_threshold=64)


# CUDA graphs


def captured(**options: Any) -> list[int] | None:
    """Positions that graphs are captured for, before vLLM looks for a GPU."""
    config = configured(SDAR)
    compilation = config.compilation_config
    compilation.max_cudagraph_capture_size = options.get("largest")
    compilation.cudagraph_capture_sizes = options.get("sizes")
    scheduler = config.scheduler_config
    scheduler.max_num_seqs = options.get("max_num_seqs", 256)
    scheduler.max_num_batched_tokens = options.get("max_num_batched_tokens", 8192)
    capture_whole_blocks(config, options.get("block", BLOCK))
    sizes: list[int] | None = compilation.cudagraph_capture_sizes
    return sizes


def test_graphs_are_captured_for_as_many_blocks_as_there_may_be_requests() -> None:
    """vLLM's own sizes end at 512 positions: from the 17th block of 32 on, each kernel
    would be launched by the host."""
    assert captured(max_num_seqs=5) == [16, 32, 48, 64, 80]
    assert captured(block=32, max_num_seqs=1024)[-1] == 4096
    assert captured(max_num_batched_tokens=48) == [16, 32, 48]
    assert captured(max_num_batched_tokens=8, block=16) == [16]
    for sizes in (captured(), captured(block=4)):
        blocks = [size // sizes[0] for size in sizes]
        assert blocks[0] == 1 and blocks[-1] == 256
        for less, more in pairwise(blocks):  # of the steps in between, padding
            assert more - less <= max(1, less / 8)
        assert len(sizes) < 50


def test_sizes_of_graphs_that_the_user_names_are_kept() -> None:
    """A user who wants fewer, for their memory, would get more."""
    assert captured(sizes=[16, 64]) == [16, 64]
    assert captured(largest=64) is None
