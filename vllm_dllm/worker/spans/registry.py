"""Which layout a model's attention asks for."""

from vllm_dllm.config import Facts
from vllm_dllm.worker.spans.base import Layout
from vllm_dllm.worker.spans.block_causal import BlockCausalLayout
from vllm_dllm.worker.spans.full_attention import FullAttentionLayout

LAYOUTS: dict[str, type[Layout]] = {
    "block_causal": BlockCausalLayout,
    "full": FullAttentionLayout,
}


def layout_class(facts: Facts) -> type[Layout]:
    return LAYOUTS[facts.attention]
