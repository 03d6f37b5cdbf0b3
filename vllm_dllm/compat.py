"""Every place where we reach into vLLM, and the versions this is known to fit.

One function per patch: what goes wrong without it, why it is safe to call twice, when
it can be removed. `tests/test_compat.py` resolves each name in `PRIVATE_SYMBOLS`, so
that a vLLM upgrade names what went missing.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.sampling_params import SamplingParams

SUPPORTED = SpecifierSet(">=0.32,<0.33")

PRIVATE_SYMBOLS: tuple[str, ...] = (
    "vllm.transformers_utils.config:_CONFIG_REGISTRY",
    "vllm.model_executor.models.config:MODELS_CONFIG_MAP",
    "vllm.config.vllm:HAS_TRITON",
    "vllm.config.vllm:VllmConfig.use_v2_model_runner",
    "vllm.config.vllm:VllmConfig._validate_v2_model_runner",
    "vllm.sampling_params:SamplingParams._validate_diffusion",
    "vllm.config:ModelConfig.get_diff_sampling_param",
    "vllm.entrypoints.openai.chat_completion.protocol:"
    "ChatCompletionRequest.to_sampling_params",
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_sampling_params",
    "vllm.entrypoints.openai.responses.protocol:ResponsesRequest.to_sampling_params",
    "vllm.entrypoints.openai.chat_completion.protocol:"
    "ChatCompletionRequest.to_beam_search_params",
    "vllm.entrypoints.openai.completion.protocol:"
    "CompletionRequest.to_beam_search_params",
    "vllm.entrypoints.openai.chat_completion.serving:get_max_tokens",
    "vllm.entrypoints.openai.completion.serving:get_max_tokens",
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
    "vllm.entrypoints.openai.chat_completion.serving:build_spec_decoding_metrics",
    "vllm.entrypoints.openai.chat_completion.serving:ChatCompletionResponse",
    "vllm.entrypoints.openai.chat_completion.serving:ChatCompletionStreamResponse",
    "vllm.entrypoints.openai.completion.serving:build_spec_decoding_metrics",
    "vllm.entrypoints.openai.completion.serving:CompletionResponse",
    "vllm.entrypoints.openai.completion.serving:CompletionStreamResponse",
    "vllm.entrypoints.openai.completion.serving:"
    "OpenAIServingCompletion.completion_stream_generator",
    "vllm.entrypoints.openai.completion.serving:"
    "OpenAIServingCompletion.request_output_to_completion_response",
    "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware",
    "vllm.v1.metrics.stats:RequestSpecDecodeMetrics",
    "vllm.engine.arg_utils:EngineArgs.add_cli_args",
    "vllm.engine.arg_utils:EngineArgs.from_cli_args",
    "vllm.engine.arg_utils:EngineArgs.create_engine_config",
    "vllm.engine.arg_utils:EngineArgs._set_default_max_num_seqs_and_batched_tokens_args",
    "vllm.config:ModelConfig.try_get_generation_config",
    "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead",
    "vllm.v1.core.sched.scheduler:Scheduler._update_after_schedule",
    "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats",
    "vllm.v1.spec_decode.metrics:SpecDecodingStats",
    "vllm.model_executor.models.llama:LlamaForCausalLM._init_model",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.finish_requests",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.prepare_inputs",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.sample",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner._dummy_sampler_run",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.sample_tokens",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.gather_batch_req_state",
    "vllm.v1.worker.gpu.attn_utils:build_attn_metadata",
    "vllm.v1.worker.gpu.model_runner:init_attn_backend",
    "vllm.utils.torch_utils:async_tensor_h2d",
    "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p",
    "vllm.triton_utils.dispatcher:register_kernels",
    "vllm.v1.worker.cpu.model_runner:CPUModelRunner",
    "vllm.v1.worker.cpu_worker:CPUWorker.init_device",
    "vllm.v1.worker.gpu_worker:Worker._make_model_runner",
)
"""Names outside vLLM's documented plugin interfaces that we use, "module:attribute"."""


def is_supported() -> bool:
    """Whether the installed vLLM is in the band that this plugin was tested with."""
    try:
        return SUPPORTED.contains(Version(version("vllm")), prereleases=True)
    except PackageNotFoundError:
        return False


def is_ours(model_config: "ModelConfig | None") -> bool:
    """Whether the model is one of our architectures; others keep vLLM's behaviour."""
    from vllm_dllm.models.registry import FAMILIES

    return model_config is not None and not FAMILIES.keys().isdisjoint(
        model_config.architectures
    )


def wrap_once(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace `owner.name` by `wrapper(original)`, and do nothing the second time."""
    original = vars(owner)[name]
    function = getattr(original, "__func__", getattr(original, "fget", original))
    if getattr(function, "_vllm_dllm", False):
        return
    wrapped: Any = functools.wraps(function)(wrapper(function))
    wrapped._vllm_dllm = True
    for kind in (staticmethod, classmethod, property):
        if isinstance(original, kind):
            wrapped = kind(wrapped)
    setattr(owner, name, wrapped)


def register_configs() -> None:
    """Read our checkpoints' config.json without remote code.

    Without it transformers knows none of the model types. A second call stores the
    same classes again. Removable when vLLM offers a registration call for configs.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from vllm_dllm.models import configs, hooks
    from vllm_dllm.models.registry import FAMILIES

    for architecture, family in FAMILIES.items():
        config_class = getattr(configs, family.config)
        _CONFIG_REGISTRY[config_class.model_type] = config_class
        MODELS_CONFIG_MAP[architecture] = hooks.BlockDiffusionConfig


def open_v2_gate() -> None:
    """Run Model Runner V2 for our models where Triton is missing.

    vLLM refuses it on such machines because of a few Triton kernels; on our path they
    have replacements (`replace_cpu_kernels`). The gate opens for our architectures
    alone. Removable when vLLM's CPU build brings kernels of its own.
    """
    from vllm.config import vllm as module

    def wrapper(function: Callable[["VllmConfig"], Any]) -> Callable[..., Any]:
        def with_gate_open(self: "VllmConfig") -> Any:
            if module.HAS_TRITON or not is_ours(self.model_config):
                return function(self)
            module.HAS_TRITON = True
            try:
                return function(self)
            finally:
                module.HAS_TRITON = False

        return with_gate_open

    wrap_once(module.VllmConfig, "use_v2_model_runner", wrapper)
    wrap_once(module.VllmConfig, "_validate_v2_model_runner", wrapper)


@contextmanager
def refusing() -> Iterator[None]:
    """Make a 400 of what our checks raise."""
    from vllm.exceptions import VLLMValidationError

    try:
        yield
    except ValueError as error:
        raise VLLMValidationError(str(error)) from None


def replace_request_validation() -> None:
    """Check requests to our models by our rules.

    vLLM's validator for diffusion models rejects every sampling parameter, among them
    temperature 0, because the one model it was written for ignores them. Removable when
    a model class can bring its own validation.
    """
    from vllm.sampling_params import SamplingParams

    from vllm_dllm.config import DllmConfig
    from vllm_dllm.request import check_sampling_params

    def wrapper(function: Callable[..., None]) -> Callable[..., None]:
        def validate(self: "SamplingParams", model_config: "ModelConfig") -> None:
            if not is_ours(model_config):
                return function(self, model_config)
            with refusing():
                check_sampling_params(self, DllmConfig.of(model_config))

        return validate

    wrap_once(SamplingParams, "_validate_diffusion", wrapper)


class OurDefaults(dict[str, Any]):
    """Default sampling parameters that belong to one of our models."""

    model_config: "ModelConfig"


class TokenLimit(int):
    """A limit of new tokens that remembers the prompt it was computed for."""

    prompt_len: int


def check_request_lengths() -> None:
    """Refuse a request that no forward could hold, before it reaches the engine.

    With full attention a request is forwarded whole or not at all, and vLLM compares
    its length with `max_model_len` alone: the engine would wait for ever. Every way
    into the engine passes `process_inputs`; in a stream, that is too late for status
    400, so for the OpenAI routes the limit of new tokens carries the length of its
    prompt to `lift_request_fields`. Removable when a model can say what a request may
    hold.
    """
    from vllm.entrypoints.openai.chat_completion import serving as chat
    from vllm.entrypoints.openai.completion import serving as completion
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    from vllm_dllm.config import DllmConfig
    from vllm_dllm.request import check_length

    def remember(function: Callable[..., int]) -> Callable[..., int]:
        def get_max_tokens(
            max_model_len: int,
            max_tokens: int | None,
            input_length: int,
            default_sampling_params: dict[str, Any],
            *args: Any,
            **kwargs: Any,
        ) -> int:
            defaults = default_sampling_params
            limit = function(
                max_model_len, max_tokens, input_length, defaults, *args, **kwargs
            )
            if not isinstance(defaults, OurDefaults):
                return limit
            limit = TokenLimit(limit)
            limit.prompt_len = input_length
            return limit

        return get_max_tokens

    def check(function: Callable[..., Any]) -> Callable[..., Any]:
        def process_inputs(self: InputProcessor, *args: Any, **kwargs: Any) -> Any:
            request = function(self, *args, **kwargs)
            params = request.sampling_params
            if is_ours(self.model_config) and isinstance(params, SamplingParams):
                with refusing():
                    check_length(
                        params.extra_args,
                        DllmConfig.of(self.model_config),
                        len(request.prompt_token_ids),
                        params.max_tokens,
                    )
            return request

        return process_inputs

    wrap_once(chat, "get_max_tokens", remember)
    wrap_once(completion, "get_max_tokens", remember)
    wrap_once(InputProcessor, "process_inputs", check)


def lift_request_fields() -> None:
    """Obey decoding parameters at the top level of a request's body.

    vLLM accepts any field there and ignores the ones it does not know: a client of
    another diffusion server would get our defaults without a word. A request knows
    nothing of its model, so the default sampling parameters, which each handler gets
    from its model and passes along, carry it; other models keep a plain dict and vLLM's
    behaviour. Errors are raised here, before a response starts, because in a stream it
    is too late for status 400. `wrap_once` makes a second call harmless. Removable when
    vLLM offers a hook for the fields it does not know.
    """
    from vllm.config import ModelConfig
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.exceptions import VLLMValidationError

    from vllm_dllm.config import DllmConfig
    from vllm_dllm.models.registry import FAMILIES
    from vllm_dllm.request import check_length
    from vllm_dllm.serving.lift import lift

    def mark(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def get_diff_sampling_param(self: "ModelConfig") -> dict[str, Any]:
            stated = function(self)
            if not is_ours(self):
                return stated
            # What the authors decode with, where the checkpoint does not say.
            [architecture, *_] = FAMILIES.keys() & set(self.architectures)
            defaults = OurDefaults(FAMILIES[architecture].generation)
            if self.generation_config not in ("auto", "vllm"):
                # vLLM would take a default of such a server for its limit.
                defaults.pop("max_tokens", None)
            defaults.update(stated)
            defaults.model_config = self
            return defaults

        return get_diff_sampling_param

    def refuse(function: Callable[..., Any]) -> Callable[..., Any]:
        def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
            if any(isinstance(a, OurDefaults) for a in (*args, *kwargs.values())):
                raise VLLMValidationError(
                    "use_beam_search=True is not supported: a block is not decoded "
                    "token by token",
                    parameter="use_beam_search",
                )
            return function(self, *args, **kwargs)

        return to_beam_search_params

    def wrapper(
        function: Callable[..., "SamplingParams"],
    ) -> Callable[..., "SamplingParams"]:
        def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
            params = function(self, *args, **kwargs)
            given = (*args, *kwargs.values())
            defaults = next((a for a in given if isinstance(a, OurDefaults)), None)
            if defaults is None:
                return params
            config = DllmConfig.of(defaults.model_config)
            limit = params.max_tokens
            if getattr(self, "echo", False) and params.prompt_logprobs == 0:
                # vLLM's way to have the prompt in an answer; nobody asked for logprobs.
                params.prompt_logprobs = None
            with refusing():
                fields = lift(self.model_extra or {}, config, params.extra_args)
                # A new dict, because theirs is the request's own `vllm_xargs`.
                params.extra_args = {**(params.extra_args or {}), **fields} or None
                params._validate_diffusion(defaults.model_config)
                if isinstance(limit, TokenLimit):
                    params.max_tokens = int(limit)
                    check_length(
                        params.extra_args, config, limit.prompt_len, params.max_tokens
                    )
            return params

        return to_sampling_params

    wrap_once(ModelConfig, "get_diff_sampling_param", mark)
    for request in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        wrap_once(request, "to_sampling_params", wrapper)
    for request in (ChatCompletionRequest, CompletionRequest):
        wrap_once(request, "to_beam_search_params", refuse)


def report_forwards() -> None:
    """Put a request's denoising forwards into the usage of its answer.

    They arrive where vLLM keeps a request's speculative decoding, which it reports as
    such. Only what our scheduler sent is moved. Removable when vLLM reports the
    denoising steps of diffusion models.
    """
    from vllm.entrypoints.openai.chat_completion import serving as chat
    from vllm.entrypoints.openai.completion import serving as completion

    from vllm_dllm.serving.usage import forwards_of, with_forwards

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        def build_spec_decoding_metrics(result: Any) -> Any:
            forwards = forwards_of(result)
            return function(result) if forwards is None else forwards

        return build_spec_decoding_metrics

    for module, names in (
        (chat, ("ChatCompletionResponse", "ChatCompletionStreamResponse")),
        (completion, ("CompletionResponse", "CompletionStreamResponse")),
    ):
        wrap_once(module, "build_spec_decoding_metrics", wrapper)
        for name in names:
            wrap_once(module, name, with_forwards)


def add_cli_flags() -> None:
    """Let `vllm serve` and every other command know the `--dllm-*` flags.

    Removable when vLLM lets a plugin add arguments.
    """
    from vllm.engine.arg_utils import EngineArgs

    from vllm_dllm import cli

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        def add_cli_args(parser: Any, *args: Any, **kwargs: Any) -> Any:
            parser = function(parser, *args, **kwargs)
            cli.add_arguments(parser)
            return parser

        return add_cli_args

    def fold(function: Callable[..., Any]) -> Callable[..., Any]:
        def from_cli_args(cls: type, args: Any) -> Any:
            engine_args = function(cls, args)
            engine_args.additional_config = cli.fold(
                args, engine_args.additional_config
            )
            return engine_args

        return from_cli_args

    wrap_once(EngineArgs, "add_cli_args", add)
    wrap_once(EngineArgs, "from_cli_args", fold)


def raise_token_budget() -> None:
    """Let one forward hold the longest request of a model with full attention.

    vLLM's default for `max_num_batched_tokens` may be less than `max_model_len`, since
    it splits prompts; ours cannot be split. vLLM raises the default where prompts are
    never split, so it is told so while it sets it; a number that the user gave stays.
    Removable when a model class can say that its prompts cannot be split.
    """
    from vllm.engine.arg_utils import EngineArgs

    from vllm_dllm.models.registry import FAMILIES

    def wrapper(function: Callable[..., None]) -> Callable[..., None]:
        def set_defaults(
            self: EngineArgs,
            usage_context: Any,
            model_config: "ModelConfig",
            *rest: Any,
        ) -> None:
            family = FAMILIES.get(model_config.architecture)
            if family is None or not family.facts.get("full_attention"):
                return function(self, usage_context, model_config, *rest)
            chunked, self.enable_chunked_prefill = self.enable_chunked_prefill, False
            try:
                function(self, usage_context, model_config, *rest)
            finally:
                self.enable_chunked_prefill = chunked

        return set_defaults

    wrap_once(EngineArgs, "_set_default_max_num_seqs_and_batched_tokens_args", wrapper)


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
            eos = config.get("eos_token_id", [])
            stops = [eos] if isinstance(eos, int) else list(eos)
            stops += DllmConfig.of(self).facts.stop_token_ids
            return {**config, "eos_token_id": list(dict.fromkeys(stops))}

        return try_get_generation_config

    wrap_once(ModelConfig, "try_get_generation_config", wrapper)


def refuse_unused_flags() -> None:
    """Say so when our flags are given for a model that is not ours.

    Without it they would be ignored without a word. Removable with `add_cli_flags`.
    """
    from vllm.engine.arg_utils import EngineArgs

    from vllm_dllm.config import given
    from vllm_dllm.models.registry import FAMILIES

    def wrapper(function: Callable[..., "VllmConfig"]) -> Callable[..., "VllmConfig"]:
        def create_engine_config(*args: Any, **kwargs: Any) -> "VllmConfig":
            config = function(*args, **kwargs)
            if not is_ours(config.model_config) and given(config.additional_config):
                raise ValueError(
                    f"--dllm-* options were given, but {config.model_config.model} "
                    f"({', '.join(config.model_config.architectures)}) is not one of "
                    f"the supported architectures: {', '.join(FAMILIES)}"
                )
            return config

        return create_engine_config

    wrap_once(EngineArgs, "create_engine_config", wrapper)


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


def size_attention_for_rows() -> None:
    """Make room for our rows of attention in the buffers of its backends.

    A span may be many rows (worker/attention.py). FlashAttention and FlashInfer size
    their buffers for `max_num_seqs` requests, so a long prefill would not fit. Called
    by workers; the second call does nothing. Removable when a model state can say how
    many rows it makes.
    """
    from vllm.v1.worker.gpu import model_runner

    from vllm_dllm.config import DllmConfig
    from vllm_dllm.worker.attention import max_rows

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        def init_attn_backend(
            kv_cache_config: Any, vllm_config: "VllmConfig", *args: Any, **kwargs: Any
        ) -> Any:
            if is_ours(vllm_config.model_config):
                config = DllmConfig.of(vllm_config.model_config)
                scheduler = copy.copy(vllm_config.scheduler_config)
                scheduler.max_num_seqs = max_rows(
                    scheduler.max_num_seqs,
                    scheduler.max_num_batched_tokens,
                    None if config.facts.full_attention else config.block,
                )
                vllm_config = copy.copy(vllm_config)
                vllm_config.scheduler_config = scheduler
            return function(kv_cache_config, vllm_config, *args, **kwargs)

        return init_attn_backend

    wrap_once(model_runner, "init_attn_backend", wrapper)
