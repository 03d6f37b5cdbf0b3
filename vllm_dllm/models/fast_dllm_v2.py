"""Fast-dLLM v2: Qwen2, layer for layer and name for name, with block diffusion."""

from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

from vllm_dllm.models.block_diffusion import BlockDiffusion


class FastDLLMv2(BlockDiffusion, Qwen2ForCausalLM):
    """`Fast_dLLM_QwenForCausalLM` checkpoints; row i of the logits is about position
    i + 1."""
