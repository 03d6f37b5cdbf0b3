"""What our subclasses and calls of vLLM's inner parts need, by who needs it.

Stated here and not beside the classes, since they are only imported by engines; the
names are looked up in every process (`missing`).
"""

_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_RUNNER = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
_PIPELINE = "vllm.v1.worker.gpu.pp_utils:PPHandler"
_GRAMMARS = "vllm.v1.structured_output"
_STATE = "vllm.v1.worker.gpu.model_states.interface:ModelState"
_OPS = "vllm._custom_ops"
_LINEAR = "vllm.model_executor.layers.linear:LinearMethodBase"
_EXPERTS = "vllm.model_executor.layers.quantization.online.moe_base:OnlineMoEMethodBase"
_COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion"

OVERRIDES: dict[str, tuple[str, ...]] = {
    "vllm_dllm.scheduler": (
        f"{_SCHEDULER}.__init__",
        f"{_SCHEDULER}.add_request",
        f"{_SCHEDULER}.schedule",
        f"{_SCHEDULER}._reserve_prefill_lookahead",
        f"{_SCHEDULER}._preempt_request",
        f"{_SCHEDULER}._update_after_schedule",
        f"{_SCHEDULER}._update_request_with_output",
        f"{_SCHEDULER}.get_grammar_bitmask",
        f"{_SCHEDULER}.update_from_output",
        f"{_SCHEDULER}.make_spec_decoding_stats",
        f"{_SCHEDULER}.finish_requests",
        f"{_SCHEDULER}.get_request_counts",
        "vllm.v1.core.kv_cache_manager:KVCacheManager.estimate_cached_tokens",
        "vllm.v1.spec_decode.metrics:SpecDecodingStats",
    ),
    "vllm_dllm.walk": (
        f"{_GRAMMARS}:StructuredOutputManager.validate_tokens",
        f"{_GRAMMARS}.backend_guidance:GuidanceGrammar.accept_tokens",
        f"{_GRAMMARS}.backend_guidance:GuidanceGrammar.fill_bitmask",
        f"{_GRAMMARS}.backend_guidance:GuidanceGrammar.is_terminated",
        f"{_GRAMMARS}.backend_guidance:GuidanceGrammar.rollback",
        f"{_GRAMMARS}.backend_types:StructuredOutputBackend",
        f"{_GRAMMARS}.backend_xgrammar:XgrammarGrammar.accept_tokens",
        f"{_GRAMMARS}.backend_xgrammar:XgrammarGrammar.fill_bitmask",
        f"{_GRAMMARS}.backend_xgrammar:XgrammarGrammar.is_terminated",
        f"{_GRAMMARS}.backend_xgrammar:XgrammarGrammar.rollback",
    ),
    "vllm_dllm.report": (
        "vllm.v1.metrics.stats:RequestSpecDecodeMetrics.observe",
        "vllm.v1.spec_decode.metrics:SpecDecodingStats",
    ),
    "vllm_dllm.compat.cpu_worker": (
        "vllm.v1.worker.cpu_worker:CPUWorker.__init__",
        "vllm.v1.worker.cpu_worker:CPUWorker.init_device",
    ),
    "vllm_dllm.compat.gpu_worker": (
        "vllm.v1.worker.gpu_worker:Worker.__init__",
        "vllm.v1.worker.gpu_worker:Worker._make_model_runner",
    ),
    "vllm_dllm.compat.arithmetic": (
        f"{_OPS}:_supports_onednn",
        f"{_OPS}:create_onednn_mm",
        f"{_OPS}:onednn_mm",
        f"{_OPS}:create_onednn_scaled_mm",
        f"{_OPS}:onednn_scaled_mm",
        f"{_OPS}:onednn_scaled_int8_quant",
    ),
    "vllm_dllm.worker.model_runner": (
        f"{_RUNNER}.load_model",
        f"{_RUNNER}.finish_requests",
        f"{_RUNNER}.gather_batch_req_state",
        f"{_RUNNER}.prepare_inputs",
        f"{_RUNNER}._dummy_sampler_run",
        f"{_RUNNER}.sample",
        f"{_RUNNER}.sample_tokens",
        f"{_RUNNER}.postprocess_sampled",
        "vllm.v1.worker.cpu.model_runner:CPUModelRunner",
        "vllm.v1.worker.gpu.lora_utils:LoraState.make_lora_inputs",
        "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin._set_active_loras",
    ),
    "vllm_dllm.worker.model_state": (
        f"{_STATE}.__init__",
        f"{_STATE}.num_new_sampled_tokens_per_step",
        f"{_STATE}.add_request",
        f"{_STATE}.custom_sampler",
        f"{_STATE}.prepare_inputs_embeds",
        f"{_STATE}.prepare_inputs",
        f"{_STATE}.prepare_dummy_inputs",
        f"{_STATE}.prepare_attn",
        "vllm.v1.worker.gpu.attn_utils:build_attn_metadata",
    ),
    "vllm_dllm.worker.stages": (
        f"{_PIPELINE}.__init__",
        f"{_PIPELINE}.get_prev_sampled_outputs",
        f"{_PIPELINE}.receive",
        f"{_PIPELINE}.broadcast",
        f"{_PIPELINE}.broadcast_drafts",
        f"{_PIPELINE}.on_req_idx_freed",
        f"{_PIPELINE}.relay_aux_hidden_states",
    ),
    "vllm_dllm.worker.sampling": (
        "vllm.utils.torch_utils:async_tensor_h2d",
        "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p",
    ),
    "vllm_dllm.models.wedlm": (
        "vllm.model_executor.models.qwen3:Qwen3ForCausalLM.__init__",
    ),
    "vllm_dllm.models.llada_moe": (
        "vllm.model_executor.models.llama:LlamaForCausalLM._init_model",
        "vllm.model_executor.models.qwen3_moe:Qwen3MoeDecoderLayer.__init__",
    ),
    "vllm_dllm.models.llada2_moe": (
        "vllm.model_executor.models.bailing_moe:BailingMoE.forward",
        "vllm.model_executor.models.bailing_moe:BailingMoeForCausalLM.__init__",
    ),
    "vllm_dllm.quantization.linear": (
        "vllm.model_executor.kernels.linear:init_int8_linear_kernel",
        f"{_LINEAR}.create_weights",
        f"{_LINEAR}.apply",
        "vllm.model_executor.model_loader.reload.layerwise:initialize_online_processing",
        "vllm.model_executor.layers.vocab_parallel_embedding:"
        "UnquantizedEmbeddingMethod.process_weights_after_loading",
    ),
    "vllm_dllm.quantization.experts": (
        f"{_EXPERTS}.process_weights_after_loading",
        f"{_EXPERTS}.apply",
        "vllm.model_executor.layers.fused_moe.fused_moe_method_base:"
        "FusedMoEMethodBase.get_fused_moe_quant_config",
    ),
    "vllm_dllm.serving.generate": (
        f"{_COMPLETION}.completion_stream_generator",
        f"{_COMPLETION}.request_output_to_completion_response",
    ),
    "vllm_dllm.serving.endpoint": (
        "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware",
    ),
    "vllm_dllm.serving.metrics": (
        "vllm.v1.metrics.loggers:StatLoggerBase.__init__",
        "vllm.v1.metrics.loggers:StatLoggerBase.record",
        "vllm.v1.metrics.loggers:StatLoggerBase.log_engine_initialized",
    ),
}
"""A module of ours -> names of vLLM's that it overrides or calls."""
