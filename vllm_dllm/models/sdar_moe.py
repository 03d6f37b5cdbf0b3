"""SDAR-30B-A3B: Qwen3-MoE, layer for layer and name for name, with block diffusion."""

from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

from vllm_dllm.models.block_diffusion import BlockDiffusion


class SDARMoeForCausalLM(BlockDiffusion, Qwen3MoeForCausalLM):
    """`SDARMoeForCausalLM` checkpoints; weight names are those of Qwen3-MoE."""
