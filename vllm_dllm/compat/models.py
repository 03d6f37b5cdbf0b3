"""Patches that let vLLM load and run our models."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import wrap_once
from vllm_dllm.models.registry import is_ours

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


def register_configs() -> None:
    """Read our checkpoints' config.json without remote code.

    Without it transformers knows none of the model types. A second call stores the
    same classes again. Removable when vLLM offers a registration call for configs.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from vllm_dllm.models import configs, engine
    from vllm_dllm.models.registry import FAMILIES

    for architecture, family in FAMILIES.items():
        config_class = getattr(configs, family.config)
        _CONFIG_REGISTRY[config_class.model_type] = config_class
        MODELS_CONFIG_MAP[architecture] = engine.BlockDiffusionConfig


def read_configs_by_architecture() -> None:
    """Read config.json of our architectures whatever `model_type` it has, or none.

    Trainers write names of their own there, which neither vLLM nor transformers knows;
    what a checkpoint is made for, its architecture says. Removable when a model class
    can name its config class.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from transformers import PreTrainedConfig
    from vllm.transformers_utils.config import HFConfigParser

    from vllm_dllm.models import configs
    from vllm_dllm.models.registry import FAMILIES

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        def parse(
            self: HFConfigParser, model: Any, *args: Any, **kwargs: Any
        ) -> tuple[dict[str, Any], Any]:
            revision = kwargs.get("revision")
            fields, _ = PreTrainedConfig.get_config_dict(
                model, revision=revision, local_files_only=HF_HUB_OFFLINE
            )
            family = next(map(FAMILIES.get, fields.get("architectures") or ()), None)
            if family is not None:
                config_class = getattr(configs, family.config)
                stated, model_type = fields.get("model_type"), config_class.model_type
                if stated != model_type:
                    fields["model_type"] = model_type
                    return fields, config_class.from_dict(fields)
            return function(self, model, *args, **kwargs)

        return parse

    wrap_once(HFConfigParser, "parse", wrapper)


@contextmanager
def claiming_triton(module: ModuleType) -> Iterator[None]:
    """Let a module of vLLM that asks for Triton find it; one that does not, be."""
    found = vars(module).get("HAS_TRITON", True)
    if not found:
        vars(module)["HAS_TRITON"] = True
    try:
        yield
    finally:
        if not found:
            vars(module)["HAS_TRITON"] = False


def open_v2_gate() -> None:
    """Run Model Runner V2 for our models where Triton is missing.

    vLLM refuses it on such machines because of a few Triton kernels; on our path they
    have replacements (`replace_cpu_kernels`). The gate opens for our architectures
    alone. Removable when vLLM's CPU build brings kernels of its own.
    """
    from vllm.config import vllm as module

    def wrapper(function: Callable[["VllmConfig"], Any]) -> Callable[..., Any]:
        def with_gate_open(self: "VllmConfig") -> Any:
            if not is_ours(self.model_config):
                return function(self)
            with claiming_triton(module):
                return function(self)

        return with_gate_open

    wrap_once(module.VllmConfig, "use_v2_model_runner", wrapper)
    wrap_once(module.VllmConfig, "_validate_v2_model_runner", wrapper)


@functools.cache
def replace_cpu_kernels() -> None:
    """Replace the Triton kernels on our path, in a worker of our models.

    Without a triton-cpu a launch of them fails. Nothing is replaced where Triton works.
    Cached, because vLLM would take the replacements of a second call for the originals
    of the first. Removable with `open_v2_gate`.
    """
    from vllm.triton_utils import HAS_TRITON, triton
    from vllm.triton_utils.dispatcher import register_kernels
    from vllm.utils.math_utils import next_power_of_2

    if HAS_TRITON:
        return
    from vllm_dllm.ops.runner_kernels import KERNELS

    if not hasattr(triton, "next_power_of_2"):  # the placeholder lacks it
        triton.next_power_of_2 = next_power_of_2
    register_kernels(KERNELS)


def add_stop_tokens() -> None:
    """End answers with the tokens that end a turn in our families.

    Released checkpoints name one end token in generation_config.json and are trained to
    use two. Other models keep what their files say. Removable when a model's config
    hook can add end tokens.
    """
    from vllm.config import ModelConfig

    from vllm_dllm.config import KEY, DllmConfig

    def wrapper(function: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
        def try_get_generation_config(self: "ModelConfig") -> dict[str, Any]:
            config = function(self)
            if not hasattr(self.hf_config, KEY):
                return config
            facts = DllmConfig.of(self).facts
            eos = config.get("eos_token_id")
            if eos is None or eos == []:
                eos = [] if facts.eos_token_id is None else facts.eos_token_id
            stops = [eos] if isinstance(eos, int) else list(eos)
            stops += facts.stop_token_ids
            return {**config, "eos_token_id": list(dict.fromkeys(stops))}

        return try_get_generation_config

    wrap_once(ModelConfig, "try_get_generation_config", wrapper)


def size_attention_for_rows() -> None:
    """Make room for our rows of attention in the buffers of its backends.

    A span may be many rows (worker/spans/). FlashAttention and FlashInfer size
    their buffers for `max_num_seqs` requests, so a long prefill would not fit. Called
    by workers; the second call does nothing. Removable when a model state can say how
    many rows it makes.
    """
    from vllm.v1.worker.gpu import model_runner

    from vllm_dllm.config import DllmConfig
    from vllm_dllm.worker.spans.registry import layout_class

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        def init_attn_backend(
            kv_cache_config: Any, vllm_config: "VllmConfig", *args: Any, **kwargs: Any
        ) -> Any:
            if is_ours(vllm_config.model_config):
                config = DllmConfig.of(vllm_config.model_config)
                scheduler = copy.copy(vllm_config.scheduler_config)
                scheduler.max_num_seqs = layout_class(config.facts).max_rows(
                    config, scheduler.max_num_seqs, scheduler.max_num_batched_tokens
                )
                vllm_config = copy.copy(vllm_config)
                vllm_config.scheduler_config = scheduler
            return function(kv_cache_config, vllm_config, *args, **kwargs)

        return init_attn_backend

    wrap_once(model_runner, "init_attn_backend", wrapper)
