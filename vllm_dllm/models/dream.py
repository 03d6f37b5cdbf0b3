"""Dream, Dream-Coder, DiffuCoder: Qwen2, layer for layer and name for name."""

from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

from vllm_dllm.models.block_diffusion import BlockDiffusion


class DreamModel(BlockDiffusion, Qwen2ForCausalLM):
    """`DreamModel` checkpoints; row i of the logits is about position i + 1."""
