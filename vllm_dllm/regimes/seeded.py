"""Seeded: block-causal, and the step that ends a block decides the next one's first
token (Fast-dLLM v2)."""

from vllm_dllm import span
from vllm_dllm.config import DllmConfig
from vllm_dllm.regimes.block_causal import BlockCausalRegime
from vllm_dllm.settled import Decoding
from vllm_dllm.span_seeded import Seeded


class SeededRegime(BlockCausalRegime):
    has_buffers = False
    has_soft_tokens = False

    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> span.Plan:
        return Seeded(span.Grid(0, decoding.block_length, span.UNBOUNDED))
