"""Stable-DiffCoder: Llama, layer for layer and name for name, with block diffusion."""

from vllm.model_executor.models.llama import LlamaForCausalLM

from vllm_dllm.models.block_diffusion import BlockDiffusion


class StableDiffcoderForCausalLM(BlockDiffusion, LlamaForCausalLM):
    """`StableDiffcoderForCausalLM` checkpoints; weight names are those of Llama."""
