"""Pages and budgets: what the engine is told so that every span has room."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.platforms import current_platform

from vllm_dllm.config import BUDGETS, KEY, DllmConfig
from vllm_dllm.decoding.registry import BUFFERED
from vllm_dllm.models.graphs import capture_whole_blocks
from vllm_dllm.plans.grid import page_size, round_up
from vllm_dllm.regimes.registry import regime_of
from vllm_dllm.regimes.window import refuse_other_rules

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.dllm")  # in vLLM's tree, or nobody sees it


def make_room(vllm_config: "VllmConfig", config: DllmConfig) -> None:
    """Tell the engine what the model's attention asks of it, or refuse what it was
    told."""
    regime_of(config.facts, config.algorithm)  # refuses what no request could have
    OF_ATTENTION[config.facts.attention](vllm_config, config)


def forward_whole_blocks(vllm_config: "VllmConfig", config: DllmConfig) -> None:
    """What block-causal attention asks of the engine."""
    refuse_idle_cache(config)
    refuse_idle_buffer(config)
    block = config.block
    set_page_size(vllm_config, block)
    # A finished block and the next canvas are the longest span of a decoding request;
    # with several blocks in flight, all of them.
    blocks = max(2, config.buffer_size)
    words = "twice" if blocks == 2 else f"{blocks} times"
    refuse_small_budget(
        vllm_config, blocks * block, f"{words} the diffusion block size {block}"
    )
    refuse_unsplit_prompts(vllm_config)
    cover_last_block(vllm_config, block)
    capture_whole_blocks(vllm_config, block)


def forward_windows(vllm_config: "VllmConfig", config: DllmConfig) -> None:
    """What a window that slides asks of the engine: no more than a causal model, but
    that a step holds it."""
    refuse_idle_cache(config)
    refuse_idle_buffer(config)
    refuse_other_rules(config.algorithm, f"{KEY}.algorithm")
    set_page_size(vllm_config, block=1)
    refuse_small_budget(vllm_config, config.block, f"the window ({KEY}.block_size)")
    refuse_unsplit_prompts(vllm_config)


def forward_whole_requests(vllm_config: "VllmConfig", config: DllmConfig) -> None:
    """What full attention asks of the engine.

    KV depends on what follows, so no two requests can share it, and a step forwards a
    request whole or not at all.
    """
    refuse_idle_buffer(config)
    threshold = vllm_config.scheduler_config.long_prefill_token_threshold
    if threshold > 0:
        raise ValueError(
            f"long_prefill_token_threshold={threshold} is not supported for models "
            "with full attention, whose prompts cannot be forwarded in parts; leave it "
            "out"
        )
    logger.info(
        "Prefix caching is off: with full attention the keys of a prompt depend on the "
        "answer that follows it."
    )
    vllm_config.cache_config.enable_prefix_caching = False
    set_page_size(vllm_config, block=1)
    canvas = min(config.block_size or 1, vllm_config.model_config.max_model_len - 1)
    why = "a prompt of one token and the canvas of one block"
    refuse_small_budget(vllm_config, 1 + canvas, why)


def forward_blocks_and_prompts_in_parts(
    vllm_config: "VllmConfig", config: DllmConfig
) -> None:
    """What a causal model with seeded blocks asks of the engine."""
    refuse_idle_cache(config)
    refuse_idle_buffer(config)
    set_page_size(vllm_config, block=1)
    refuse_small_budget(vllm_config, config.block, "the diffusion block size")
    refuse_unsplit_prompts(vllm_config)


def refuse_idle_cache(config: DllmConfig) -> None:
    """Raise ValueError for a cache that only full attention has."""
    if config.cache != "none":
        raise ValueError(
            f"{KEY}.cache={config.cache!r} has no meaning without full attention, "
            "where the KV cache is exact; leave it out"
        )


def refuse_unsplit_prompts(vllm_config: "VllmConfig") -> None:
    """Raise ValueError where a step may not hold the longest prompt, and no part of
    it."""
    if not vllm_config.scheduler_config.enable_chunked_prefill:
        longest = vllm_config.model_config.max_model_len
        why = "the longest prompt (max_model_len), and prompts are not to be split"
        refuse_small_budget(vllm_config, longest, why)


def refuse_idle_buffer(config: DllmConfig) -> None:
    """Raise ValueError for a default of several blocks in flight that no request could
    have."""
    if config.buffer_size == 1:
        return
    given = f"{KEY}.buffer_size={config.buffer_size}"
    regime = regime_of(config.facts)
    if not regime.has_buffers:
        raise ValueError(f"{given} {regime.why_no_buffers}; leave it out")
    if config.algorithm not in BUFFERED:
        raise ValueError(
            f"{given} is not defined for the decoding rule {config.algorithm!r}, the "
            f"default of this server; allowed: {', '.join(BUFFERED)}"
        )


def set_page_size(vllm_config: "VllmConfig", block: int) -> None:
    """Choose a KV page that holds whole blocks, or refuse the user's."""
    cache_config = vllm_config.cache_config
    if cache_config.user_specified_block_size:
        if cache_config.block_size % block:
            raise ValueError(
                f"--block-size {cache_config.block_size} (the KV page) is not a "
                f"multiple of the diffusion block size {block}; use "
                f"{round_up(cache_config.block_size, block)} or leave it out"
            )
        return
    # Small pages share prefixes at a fine grain; 32 is the smallest for which the CPU
    # kernels are vectorised, 16 the unit of the CUDA backends.
    granularity = 32 if current_platform.is_cpu() else 16
    cache_config.block_size = page_size(block, granularity)
    # The platforms replace a page size that was not asked for by their default.
    cache_config.user_specified_block_size = True


def refuse_small_budget(vllm_config: "VllmConfig", least: int, why: str) -> None:
    """Raise ValueError if a step may forward less than `least` tokens of a request: it
    would wait for ever."""
    for field in BUDGETS:
        value = getattr(vllm_config.scheduler_config, field)
        if value and value < least:  # 0 and None stand for no limit
            raise ValueError(f"{field}={value} is less than {least}, {why}")


def cover_last_block(vllm_config: "VllmConfig", block: int) -> None:
    """Give rotary tables a row for every position of the last block.

    A canvas ends on a block border, which may lie past `max_model_len`; what is past it
    is forwarded, as the authors' code does, and never emitted.
    """
    hf_config = vllm_config.model_config.hf_config
    hf_config.max_position_embeddings = round_up(
        hf_config.max_position_embeddings, block
    )


OF_ATTENTION: dict[str, Callable[["VllmConfig", DllmConfig], None]] = {
    "block_causal": forward_whole_blocks,
    "seeded": forward_whole_blocks,
    "seeded_causal": forward_blocks_and_prompts_in_parts,
    "full": forward_whole_requests,
    "window": forward_windows,
}
