"""Seeded blocks over a causal model (Nemotron-Labs-Diffusion): blocks of any length,
counted from the end of the prompt."""

from typing import Any

from vllm_dllm.config import DllmConfig
from vllm_dllm.params import PREFIX, DllmParams
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.grid import answer_grid
from vllm_dllm.plans.seeded import SeededCausal
from vllm_dllm.regimes.base import Regime
from vllm_dllm.regimes.fields import refuse_other_attentions
from vllm_dllm.settled import Decoding


class SeededCausalRegime(Regime):
    causal = False
    has_buffers = False
    has_soft_tokens = False
    forwards_whole = False
    rewrites_known = True

    def check_wishes(
        self, wishes: DllmParams, own: dict[str, Any], config: DllmConfig
    ) -> None:
        refuse_other_attentions(own)
        limits = config.facts.budgets | {"max_model_len": config.facts.max_model_len}
        for name, limit in limits.items():
            if (wishes.block_length or 1) > limit:
                raise ValueError(
                    f"{PREFIX}block_length={wishes.block_length} is more than one "
                    f"forward may hold; allowed: 1 to {limit} ({name})"
                )

    def block_of_an_answer(
        self, wishes: DllmParams, config: DllmConfig, max_tokens: int
    ) -> int:
        return wishes.block_length or config.block

    def steps_of_a_block(
        self, wishes: DllmParams, config: DllmConfig, block: int, max_tokens: int
    ) -> int:
        return wishes.steps or block

    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> Plan:
        block, longest = decoding.block_length, config.facts.max_model_len
        grid = answer_grid(prompt_len, max_tokens, block, longest)
        return SeededCausal(grid)

    def check_plan(
        self,
        plan: Plan,
        decoding: Decoding,
        config: DllmConfig,
        prompt_len: int,
        max_tokens: int,
    ) -> None:
        pass  # a prompt is forwarded in parts, and a block has room (`check_wishes`)

    def end_of_canvas(self, config: DllmConfig, length: int) -> int:
        return length


class AutoregressiveRegime(SeededCausalRegime):
    """Blocks of one token, which is its seed."""

    def block_of_an_answer(
        self, wishes: DllmParams, config: DllmConfig, max_tokens: int
    ) -> int:
        return 1
