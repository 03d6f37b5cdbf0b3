"""Dense LLaDA (8B, 1.5): Llama, layer for layer, under OLMo's names."""

from collections.abc import Iterable

import torch
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.utils import WeightsMapper

from vllm_dllm.models.block_diffusion import BlockDiffusion

RELEASED_NAMES = WeightsMapper(
    # In this order: the head must be gone before a layer's `ff_out` is looked for.
    orig_to_new_substr={
        "model.transformer.ff_out": "lm_head",
        "model.transformer.wte": "model.embed_tokens",
        "model.transformer.ln_f": "model.norm",
        "model.transformer.blocks": "model.layers",
        ".attn_norm": ".input_layernorm",
        ".q_proj": ".self_attn.q_proj",
        ".k_proj": ".self_attn.k_proj",
        ".v_proj": ".self_attn.v_proj",
        ".attn_out": ".self_attn.o_proj",
        ".ff_norm": ".post_attention_layernorm",
        ".ff_proj": ".mlp.gate_proj",
        ".up_proj": ".mlp.up_proj",
        ".ff_out": ".mlp.down_proj",
    }
)


class LLaDAModelLM(BlockDiffusion, LlamaForCausalLM):
    """`LLaDAModelLM` checkpoints."""

    # Read for the names in quantization configs and adapters.
    hf_to_vllm_mapper = RELEASED_NAMES | LlamaForCausalLM.hf_to_vllm_mapper

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return super().load_weights(RELEASED_NAMES.apply(weights))

    @staticmethod
    def released_name(name: str) -> str:
        for released, ours in reversed(RELEASED_NAMES.orig_to_new_substr.items()):
            name = name.replace(ours, released)
        return name
