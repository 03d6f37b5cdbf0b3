"""Seeded: block-causal, and the step that ends a block decides the next one's first
token (Fast-dLLM v2)."""

from vllm_dllm.config import DllmConfig
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.grid import UNBOUNDED, Grid
from vllm_dllm.plans.seeded import Seeded
from vllm_dllm.regimes.block_causal import BlockCausalRegime
from vllm_dllm.settled import Decoding


class SeededRegime(BlockCausalRegime):
    has_buffers = False
    has_soft_tokens = False

    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> Plan:
        return Seeded(Grid(0, decoding.block_length, UNBOUNDED))
