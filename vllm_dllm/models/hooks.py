"""What vLLM is told about our architectures before an engine is built.

vLLM calls these for a model whose architecture is in its config-hook table
(compat/models.py puts ours there): once with the model config, once with the whole
config. Everything that cannot work is refused here, with one clear message.
"""

from typing import TYPE_CHECKING, Any

from vllm.config.compilation import CUDAGraphMode
from vllm.config.diffusion import DiffusionConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from vllm_dllm import span
from vllm_dllm.config import KEY, DllmConfig, Facts, given
from vllm_dllm.models.registry import FAMILIES, Family

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

logger = init_logger("vllm.dllm")  # in vLLM's tree, or nobody sees it

WHOLE_ANSWER_CANVAS = 32
"""What vLLM is told of the canvas where a block is the whole answer; its counters of
canvas positions go no higher."""
SCHEDULER = "vllm_dllm.scheduler.BlockDiffusionScheduler"
WORKERS = {
    "cpu": "vllm_dllm.worker.worker.DenoisingCPUWorker",
    "cuda": "vllm_dllm.worker.worker.DenoisingGPUWorker",
}


class BlockDiffusionConfig(VerifyAndUpdateConfig):
    """Fills in diffusion_config, scheduler, worker and page size."""

    @staticmethod
    def verify_and_update_model_config(model_config: "ModelConfig") -> None:
        # vLLM caches `is_diffusion` when it is first read, which may be before the
        # flags are known; the value itself is set below.
        defaults = family_of(model_config).defaults
        model_config.hf_config.canvas_length = canvas_length(defaults.get("block_size"))

    @classmethod
    def verify_and_update_config(cls, vllm_config: "VllmConfig") -> None:
        refuse_unsupported(vllm_config)
        model_config = vllm_config.model_config
        family = family_of(model_config)
        config = DllmConfig.build(
            family.defaults,
            checkpoint_fields(model_config),
            user_fields(vllm_config),
            facts=Facts(**family.facts),
        )
        vocab_size = model_config.get_vocab_size()
        if config.mask_token_id >= vocab_size:
            raise ValueError(
                f"{KEY}.mask_token_id={config.mask_token_id} is not in the vocabulary "
                f"of {vocab_size} tokens"
            )
        canvas = canvas_length(config.block_size)
        model_config.hf_config.canvas_length = canvas
        vllm_config.diffusion_config = DiffusionConfig(canvas_length=canvas)

        if config.facts.full_attention:
            forward_whole_requests(vllm_config)
        else:
            forward_whole_blocks(vllm_config, config)
        facts = engine_facts(vllm_config, config)
        config.with_facts(facts).attach(model_config)
        vllm_config.attention_config.use_non_causal = True
        vllm_config.scheduler_config.async_scheduling = False
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER
        if vllm_config.parallel_config.worker_cls == "auto":
            vllm_config.parallel_config.worker_cls = WORKERS[
                current_platform.device_type
            ]
        logger.info("Diffusion language model: %s", config)


def family_of(model_config: "ModelConfig") -> Family:
    return FAMILIES[model_config.architecture]


def canvas_length(block_size: int | None) -> int:
    """The canvas that vLLM is told of: a block."""
    return block_size or WHOLE_ANSWER_CANVAS


def user_fields(vllm_config: "VllmConfig") -> dict[str, Any]:
    """What the user set under our key, and vLLM's own name for the block size."""
    fields = given(vllm_config.additional_config)
    if vllm_config.diffusion_config is not None:
        fields.setdefault("block_size", vllm_config.diffusion_config.canvas_length)
    return fields


def checkpoint_fields(model_config: "ModelConfig") -> dict[str, Any]:
    """Fields of `DllmConfig` that the checkpoint itself states."""
    hf_config = model_config.hf_config
    mask_token_id = getattr(hf_config, "mask_token_id", None)
    if mask_token_id is None:
        mask_token_id = find_mask_token(model_config)
    return {
        "block_size": getattr(hf_config, "block_size", None),
        "mask_token_id": mask_token_id,
    }


def find_mask_token(model_config: "ModelConfig") -> int | None:
    """The id of the family's mask token in the checkpoint's tokenizer, if any."""
    found = find_tokens(model_config, family_of(model_config).mask_tokens)
    return next((token for token in found if token is not None), None)


def find_tokens(
    model_config: "ModelConfig", spellings: tuple[str, ...]
) -> list[int | None]:
    """The id of each spelling in the checkpoint's tokenizer, or None."""
    from vllm.tokenizers import cached_tokenizer_from_config

    if model_config.skip_tokenizer_init or not spellings:
        return [None] * len(spellings)
    vocab = cached_tokenizer_from_config(model_config).get_vocab()
    return [vocab.get(spelling) for spelling in spellings]


def engine_facts(vllm_config: "VllmConfig", config: DllmConfig) -> Facts:
    """The facts of the architecture, and those of this engine."""
    model_config = vllm_config.model_config
    stops = find_tokens(model_config, family_of(model_config).stop_tokens)
    eos = model_config.hf_config.eos_token_id
    return config.facts.model_copy(
        update={
            "eos_token_id": eos[0] if isinstance(eos, list) else eos,
            "eot_token_id": stops[-1] if stops else None,
            "stop_token_ids": [token for token in stops if token is not None],
            "max_model_len": model_config.max_model_len,
            "max_num_batched_tokens": (
                vllm_config.scheduler_config.max_num_batched_tokens
            ),
            "page_size": vllm_config.cache_config.block_size,
            "vocab_size": model_config.get_vocab_size(),
        }
    )


def forward_whole_blocks(vllm_config: "VllmConfig", config: DllmConfig) -> None:
    """What block-causal attention asks of the engine."""
    if config.cache != "none":
        raise ValueError(
            f"{KEY}.cache={config.cache!r} has no meaning for a block-causal model, "
            "whose KV cache is exact; leave it out"
        )
    set_page_size(vllm_config, config.block)
    set_token_budget(vllm_config, config.block)
    cover_last_block(vllm_config, config.block)


def forward_whole_requests(vllm_config: "VllmConfig") -> None:
    """What full attention asks of the engine.

    KV depends on what follows, so no two requests can share it, and a step forwards a
    request whole or not at all.
    """
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


def set_page_size(vllm_config: "VllmConfig", block: int) -> None:
    """Choose a KV page that holds whole blocks, or refuse the user's."""
    cache_config = vllm_config.cache_config
    if cache_config.user_specified_block_size:
        if cache_config.block_size % block:
            raise ValueError(
                f"--block-size {cache_config.block_size} (the KV page) is not a "
                f"multiple of the diffusion block size {block}; use "
                f"{span.round_up(cache_config.block_size, block)} or leave it out"
            )
        return
    # Small pages share prefixes at a fine grain; 32 is the smallest for which the CPU
    # kernels are vectorised, 16 the unit of the CUDA backends.
    granularity = 32 if current_platform.is_cpu() else 16
    cache_config.block_size = span.page_size(block, granularity)
    # The platforms replace a page size that was not asked for by their default.
    cache_config.user_specified_block_size = True


def set_token_budget(vllm_config: "VllmConfig", block: int) -> None:
    """A step must have room for the longest span of a decoding request."""
    scheduler_config = vllm_config.scheduler_config
    longest = 2 * block  # a finished block and the next canvas
    for field in ("max_num_batched_tokens", "long_prefill_token_threshold"):
        value = getattr(scheduler_config, field)
        if 0 < value < longest:
            raise ValueError(
                f"{field}={value} is less than {longest}, twice the diffusion block "
                f"size {block}"
            )


def cover_last_block(vllm_config: "VllmConfig", block: int) -> None:
    """Give rotary tables a row for every position of the last block.

    A canvas ends on a block border, which may lie past `max_model_len`; what is past it
    is forwarded, as the authors' code does, and never emitted.
    """
    hf_config = vllm_config.model_config.hf_config
    hf_config.max_position_embeddings = span.round_up(
        hf_config.max_position_embeddings, block
    )


def captures_any_batch(vllm_config: "VllmConfig") -> bool:
    """Whether a whole model is to be captured for batches whose attention rows are not
    their requests (worker/attention.py)."""
    mode = vllm_config.compilation_config.cudagraph_mode
    if mode is None or vllm_config.model_config.enforce_eager:
        return False
    return mode.mixed_mode() == CUDAGraphMode.FULL


def refuse_unsupported(vllm_config: "VllmConfig") -> None:
    """Raise ValueError for features that would give wrong answers or none."""
    parallel = vllm_config.parallel_config
    model_config = vllm_config.model_config
    refused = {
        "pipeline parallelism (--pipeline-parallel-size)": (
            parallel.pipeline_parallel_size > 1
        ),
        "decode context parallelism": parallel.decode_context_parallel_size > 1,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "speculative decoding (--speculative-config)": (
            vllm_config.speculative_config is not None
        ),
        "KV transfer (--kv-transfer-config)": (
            vllm_config.kv_transfer_config is not None
        ),
        "sliding window attention": model_config.get_sliding_window() is not None,
        "prompt embeddings (--enable-prompt-embeds)": (
            model_config.enable_prompt_embeds
        ),
        "pooling (--runner pooling)": model_config.runner_type != "generate",
        "LoRA on CPU (--enable-lora) for a model with experts": (
            vllm_config.lora_config is not None
            and model_config.is_moe
            and current_platform.is_cpu()
        ),
        "asynchronous scheduling (--async-scheduling)": (
            vllm_config.scheduler_config.async_scheduling is True
        ),
        "a logits processor (--logits-processors)": bool(
            model_config.logits_processors
        ),
        "another scheduler (--scheduler-cls)": (
            vllm_config.scheduler_config.scheduler_cls not in (None, SCHEDULER)
        ),
        "a CUDA graph of any batch (cudagraph_mode FULL; FULL_AND_PIECEWISE has one of "
        "steps that forward a block of each request)": captures_any_batch(vllm_config),
        "watermarks (--watermark-config)": vllm_config.watermark_config is not None,
        "sampling masks (--return-sampling-mask)": model_config.return_sampling_mask,
        f"--logprobs-mode {model_config.logprobs_mode}": (
            model_config.logprobs_mode != "raw_logprobs"
        ),
        f"the {current_platform.device_type} platform": (
            current_platform.device_type not in WORKERS
        ),
        "the V1 model runner (VLLM_USE_V2_MODEL_RUNNER=0)": (
            not vllm_config.use_v2_model_runner
        ),
    }
    for feature, requested in refused.items():
        if requested:
            raise ValueError(
                f"{feature} is not supported for diffusion language models "
                f"({model_config.architecture})"
            )
