"""DiffuLLaMA: Llama, layer for layer and name for name."""

from vllm.model_executor.models.llama import LlamaForCausalLM

from vllm_dllm.models.block_diffusion import BlockDiffusion


class DiffuLlamaModel(BlockDiffusion, LlamaForCausalLM):
    """DiffuLLaMA checkpoints; row i of the logits is about position i + 1."""
