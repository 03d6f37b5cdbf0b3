"""SDAR, TraDo: Qwen3, layer for layer and name for name, with block diffusion."""

from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from vllm_dllm.models.block_diffusion import BlockDiffusion


class SDARForCausalLM(BlockDiffusion, Qwen3ForCausalLM):
    """`SDARForCausalLM` checkpoints; weight names are those of Qwen3."""
