"""Which regime a request has: that of its model's attention, or of its rule."""

from vllm_dllm.config import Facts
from vllm_dllm.params import PREFIX
from vllm_dllm.regimes.adaptive import AdaptiveRegime
from vllm_dllm.regimes.after_prompt import AfterPromptRegime
from vllm_dllm.regimes.base import Regime
from vllm_dllm.regimes.block_causal import BlockCausalRegime
from vllm_dllm.regimes.full_attention import FullAttentionRegime
from vllm_dllm.regimes.pipelined import PipelinedRegime
from vllm_dllm.regimes.seeded import SeededRegime
from vllm_dllm.regimes.seeded_causal import (
    AutoregressiveRegime,
    SeededCausalRegime,
)
from vllm_dllm.regimes.window import WindowRegime

PIPELINED = PipelinedRegime()
REGIMES: dict[str, Regime] = {
    "block_causal": BlockCausalRegime(),
    "seeded": SeededRegime(),
    "seeded_causal": SeededCausalRegime(),
    "full": FullAttentionRegime(),
    "window": WindowRegime(),
}
OF_RULES: dict[str, dict[str, Regime]] = {
    "d2f": {"full": AfterPromptRegime()},
    "adablock": {"full": AdaptiveRegime()},
    "d3llm": {"full": PIPELINED},
    "d3llm_of_dream": {"full": PIPELINED},
    "linear_spec": {"seeded_causal": AutoregressiveRegime()},
}
"""Rules that bring an attention or blocks of their own, and to which models."""
NAMES = {
    "block_causal": "block-causal models",
    "seeded_causal": "causal models with seeded blocks (Nemotron-Labs-Diffusion)",
    "full": "models with full attention",
}


def regime_of(facts: Facts, rule: str | None = None) -> Regime:
    """That of a model's requests, or of those which `rule` decodes.

    Raises:
        ValueError: if the rule is for other models.
    """
    if rule not in OF_RULES:
        return REGIMES[facts.attention]
    if facts.attention not in OF_RULES[rule]:
        models = " and ".join(NAMES[attention] for attention in OF_RULES[rule])
        raise ValueError(f"{PREFIX}algorithm={rule!r} is for {models}")
    return OF_RULES[rule][facts.attention]
