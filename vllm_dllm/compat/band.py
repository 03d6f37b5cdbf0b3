"""The versions of vLLM that this is known to fit, and what of it we need."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet
from packaging.version import Version

SUPPORTED = SpecifierSet(">=0.32,<0.34")

PRIVATE_SYMBOLS: tuple[str, ...] = (
    "vllm.transformers_utils.config:_CONFIG_REGISTRY",
    "vllm.transformers_utils.config:HFConfigParser.parse",
    "vllm.model_executor.models.config:MODELS_CONFIG_MAP",
    "vllm.config.vllm:HAS_TRITON",
    "vllm.config.vllm:VllmConfig.use_v2_model_runner",
    "vllm.config.vllm:VllmConfig._validate_v2_model_runner",
    "vllm.sampling_params:SamplingParams._validate_logprobs",
    "vllm.sampling_params:SamplingParams._validate_stop_token_ids",
    "vllm.sampling_params:SamplingParams._validate_logit_bias",
    "vllm.sampling_params:SamplingParams._validate_allowed_token_ids",
    "vllm.sampling_params:SamplingParams._validate_diffusion",
    "vllm.sampling_params:SamplingParams._validate_structured_outputs",
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
    "vllm.renderers.base:BaseRenderer.render_completion_suffix",
    "vllm.renderers.base:BaseRenderer.validate_token_ids",
    "vllm.parser.abstract_parser:Parser.__init__",
    "vllm.parser.abstract_parser:DelegatingParser.adjust_request",
    "vllm.parser.abstract_parser:DelegatingParser.parse",
    "vllm.entrypoints.serve.engine.serving:BaseServing._extract_prompt_len",
    "vllm.tokenizers.registry:cached_tokenizer_from_config",
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
    "vllm.v1.core.sched.scheduler:Scheduler._update_request_with_output",
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
    "vllm.v1.worker.gpu.lora_utils:LoraState.make_lora_inputs",
    "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin._set_active_loras",
    "vllm.lora.ops.torch_ops.lora_ops:bgmv_shrink",
    "vllm.lora.ops.torch_ops.lora_ops:bgmv_expand",
    "vllm.lora.ops.torch_ops.lora_ops:bgmv_expand_slice",
    "vllm.lora.punica_wrapper.punica_cpu:bgmv_expand",
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
