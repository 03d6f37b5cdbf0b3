"""Which regime a model's attention is."""

from vllm_dllm.config import Facts
from vllm_dllm.regimes.base import Regime
from vllm_dllm.regimes.block_causal import BlockCausalRegime
from vllm_dllm.regimes.full_attention import FullAttentionRegime

REGIMES: dict[str, Regime] = {
    "block_causal": BlockCausalRegime(),
    "full": FullAttentionRegime(),
}


def regime_of(facts: Facts) -> Regime:
    return REGIMES[facts.attention]
