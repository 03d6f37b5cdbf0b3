"""What vLLM is told about our architectures before an engine is built.

vLLM calls these for a model whose architecture is in its config-hook table
(compat/configs.py puts ours there): once with the model config, once with the whole
config. Everything that cannot work is refused here, with one clear message.
"""

from typing import TYPE_CHECKING, Any

from vllm.config.compilation import CUDAGraphMode
from vllm.config.diffusion import DiffusionConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON

from vllm_dllm.config import KEY, DllmConfig
from vllm_dllm.efforts import check_efforts
from vllm_dllm.models.capacity import make_room
from vllm_dllm.models.sources import (
    checkpoint_fields,
    defaults_of,
    engine_facts,
    family_of,
    user_fields,
)
from vllm_dllm.regimes.registry import regime_of
from vllm_dllm.request import refuse_strange_moves

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

logger = init_logger("vllm.dllm")  # in vLLM's tree, or nobody sees it

WHOLE_ANSWER_CANVAS = 32
"""What vLLM is told of the canvas where a block is the whole answer; its counters of
canvas positions go no higher."""
SCHEDULER = "vllm_dllm.scheduler.BlockDiffusionScheduler"
WORKERS = {
    "cpu": "vllm_dllm.compat.cpu_worker.DenoisingCPUWorker",
    "cuda": "vllm_dllm.compat.gpu_worker.DenoisingGPUWorker",
}


class BlockDiffusionConfig(VerifyAndUpdateConfig):
    """Fills in diffusion_config, scheduler, worker and page size."""

    @staticmethod
    def verify_and_update_model_config(model_config: "ModelConfig") -> None:
        # vLLM caches `is_diffusion` when it is first read, which may be before the
        # flags are known; the value itself is set below.
        defaults = defaults_of(model_config)
        forget_unused_window(model_config.hf_config)
        model_config.hf_config.canvas_length = canvas_length(defaults.get("block_size"))

    @classmethod
    def verify_and_update_config(cls, vllm_config: "VllmConfig") -> None:
        refuse_unsupported(vllm_config)
        model_config = vllm_config.model_config
        family = family_of(model_config)
        config = DllmConfig.build(
            defaults_of(model_config),
            checkpoint_fields(model_config),
            user_fields(vllm_config),
            facts=family.facts,
        )
        vocab_size = model_config.get_vocab_size()
        if config.mask_token_id >= vocab_size:
            raise ValueError(
                f"{KEY}.mask_token_id={config.mask_token_id} is not in the vocabulary "
                f"of {vocab_size} tokens"
            )
        refuse_torn_blocks(model_config.hf_config, config.block_size)
        canvas = canvas_length(config.block_size)
        model_config.hf_config.canvas_length = canvas
        vllm_config.diffusion_config = DiffusionConfig(canvas_length=canvas)

        make_room(vllm_config, config)
        facts = engine_facts(vllm_config, config)
        config = config.with_facts(facts)
        refuse_strange_moves(config.algorithm, config)
        check_efforts(config)
        config.attach(model_config)
        vllm_config.attention_config.use_non_causal = not regime_of(facts).causal
        # vLLM's own default is to plan ahead.
        vllm_config.scheduler_config.async_scheduling = facts.plans_ahead
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER
        if current_platform.is_cpu() and not HAS_TRITON:
            # vLLM 0.33 warms up kernels that need Triton, and nothing is compiled here.
            vllm_config.kernel_config.enable_jit_warmup = False
        if vllm_config.parallel_config.worker_cls == "auto":
            vllm_config.parallel_config.worker_cls = WORKERS[
                current_platform.device_type
            ]
        logger.info("Diffusion language model: %s", config)


def refuse_torn_blocks(hf_config: Any, block_size: int | None) -> None:
    """Raise ValueError for blocks that would not hold whole ones of those in which
    tokens share their experts (LLaDA2.2)."""
    if not getattr(hf_config, "expert_capacity", None):
        return
    routed = hf_config.block_size
    if block_size is None or block_size % routed:
        raise ValueError(
            f"{KEY}.block_size={block_size}: tokens share their experts in blocks of "
            f"{routed} (block_size of config.json); allowed: {routed} and multiples of "
            "it"
        )


def forget_unused_window(hf_config: Any) -> None:
    """Take a window of attention away that no layer has.

    Tools write one next to the word that it is not used, or for layers behind the last.
    """
    unused = getattr(hf_config, "use_sliding_window", None) is False
    first = getattr(hf_config, "max_window_layers", None)
    if kinds := layer_kinds(hf_config):
        unused = unused or kinds == {"full_attention"}
    elif first is not None:
        unused = unused or first >= hf_config.num_hidden_layers
    if unused:
        hf_config.sliding_window = None


def layer_kinds(hf_config: Any) -> set[str]:
    """The kinds of attention that config.json names; none if it names none."""
    return set(getattr(hf_config, "layer_types", None) or ())


def canvas_length(block_size: int | None) -> int:
    """The canvas that vLLM is told of: a block."""
    return block_size or WHOLE_ANSWER_CANVAS


def captures_any_batch(vllm_config: "VllmConfig") -> bool:
    """Whether a whole model is to be captured for batches whose attention rows are not
    their requests (worker/spans/)."""
    mode = vllm_config.compilation_config.cudagraph_mode
    if mode is None or vllm_config.model_config.enforce_eager:
        return False
    return mode.mixed_mode() == CUDAGraphMode.FULL


def refuse_unsupported(vllm_config: "VllmConfig") -> None:
    """Raise ValueError for features that would give wrong answers or none."""
    parallel = vllm_config.parallel_config
    model_config = vllm_config.model_config
    refused = {
        "decode context parallelism": parallel.decode_context_parallel_size > 1,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "micro-batches (--enable-dbo, --ubatch-size)": parallel.use_ubatching,
        "speculative decoding (--speculative-config)": (
            vllm_config.speculative_config is not None
        ),
        "KV transfer (--kv-transfer-config)": (
            vllm_config.kv_transfer_config is not None
        ),
        "sliding window attention": (
            model_config.get_sliding_window() is not None
            or not layer_kinds(model_config.hf_config) <= {"full_attention"}
        ),
        "a length that follows from the memory (--max-model-len auto; name a number)": (
            model_config.original_max_model_len == -1
        ),
        "prompt embeddings (--enable-prompt-embeds)": (
            model_config.enable_prompt_embeds
        ),
        "pooling (--runner pooling)": model_config.runner_type != "generate",
        "LoRA on CPU (--enable-lora) for a model with experts": (
            vllm_config.lora_config is not None
            and model_config.is_moe
            and current_platform.is_cpu()
        ),
        "data parallelism on CPU (--data-parallel-size) for a model with experts": (
            parallel.data_parallel_size > 1
            and model_config.is_moe
            and current_platform.is_cpu()
        ),
        # vLLM says so too, but not of a hybrid one with one rank on a node, which it
        # makes an external one, and then ends without a word.
        "external load balancing (--data-parallel-hybrid-lb with "
        "--data-parallel-size-local 1) of a model without experts, whose ranks are "
        "servers by themselves,": (
            parallel.data_parallel_size > 1
            and parallel.data_parallel_external_lb
            and not model_config.is_moe
        ),
        "asynchronous scheduling (--async-scheduling) with pipeline parallelism": (
            vllm_config.scheduler_config.async_scheduling is True
            and parallel.pipeline_parallel_size > 1
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
