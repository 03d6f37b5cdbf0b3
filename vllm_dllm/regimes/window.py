"""Window: a token sees those before it, and a window of masks slides behind them.

A request chooses the length of its window, which is its block, and goes along.
"""

from typing import Any

from vllm_dllm.config import DllmConfig
from vllm_dllm.params import FULL_ATTENTION_FIELDS, PREFIX, DllmParams
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.grid import Sliding
from vllm_dllm.plans.window import Window
from vllm_dllm.quoting import quoted
from vllm_dllm.regimes.base import Regime
from vllm_dllm.regimes.fields import refuse_fields
from vllm_dllm.settled import Decoding

RULES = (
    "wedlm",
    "sequential",
    "threshold",
    "confidence_threshold",
    "factor",
    "entropy_bounded",
    "local_leap",
    "hierarchical",
)
"""Rules that ask for no more than the masks of a step: a window has no first step and
no last one, and its tokens leave while others are decoded."""


class WindowRegime(Regime):
    causal = True
    has_buffers = False
    has_soft_tokens = False
    forwards_whole = False

    def check_wishes(
        self, wishes: DllmParams, own: dict[str, Any], config: DllmConfig
    ) -> None:
        refuse_fields(own, FULL_ATTENTION_FIELDS, "is for models with full attention")
        refuse_fields(
            own, ["block_length"], f"has no meaning in a window; see {PREFIX}window"
        )
        refuse_other_rules(wishes.algorithm)

    def block_of_an_answer(
        self, wishes: DllmParams, config: DllmConfig, max_tokens: int
    ) -> int:
        return wishes.window or config.block

    def steps_of_a_block(
        self, wishes: DllmParams, config: DllmConfig, block: int, max_tokens: int
    ) -> int:
        return block

    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> Plan:
        end = config.facts.max_model_len
        return Window(Sliding(0, decoding.block_length, end))

    def check_plan(
        self,
        plan: Plan,
        decoding: Decoding,
        config: DllmConfig,
        prompt_len: int,
        max_tokens: int,
    ) -> None:
        for name, limit in config.facts.budgets.items():
            if decoding.block_length > limit:
                raise ValueError(
                    f"{PREFIX}window={decoding.block_length} tokens, which one forward "
                    f"must hold; allowed: 1 to {limit} ({name})"
                )

    def end_of_canvas(self, config: DllmConfig, length: int) -> int:
        return length


def refuse_other_rules(name: str, spelled: str = f"{PREFIX}algorithm") -> None:
    """Raise ValueError for a decoding rule that counts on blocks.

    Args:
        spelled: what the field with the name is called.
    """
    if name not in RULES:
        raise ValueError(
            f"{spelled}={quoted(name)} is not defined in a window that slides, only "
            f"for blocks; allowed: {', '.join(RULES)}"
        )
