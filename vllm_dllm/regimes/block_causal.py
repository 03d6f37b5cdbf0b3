"""Block-causal: a position sees its own block and those before it."""

from typing import Any

from vllm_dllm.config import DllmConfig
from vllm_dllm.params import PREFIX, DllmParams
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.buffered import Buffered
from vllm_dllm.plans.grid import UNBOUNDED, Grid, round_up
from vllm_dllm.regimes.base import Regime
from vllm_dllm.regimes.fields import refuse_other_attentions
from vllm_dllm.settled import Decoding


class BlockCausalRegime(Regime):
    causal = False
    has_buffers = True
    has_soft_tokens = True
    forwards_whole = False

    def check_wishes(
        self, wishes: DllmParams, own: dict[str, Any], config: DllmConfig
    ) -> None:
        refuse_other_attentions(own)
        if wishes.block_length not in (None, config.block):
            raise ValueError(
                f"{PREFIX}block_length={wishes.block_length} is not the block size of "
                f"this server, {config.block}, which the checkpoint was trained with"
            )

    def block_of_an_answer(
        self, wishes: DllmParams, config: DllmConfig, max_tokens: int
    ) -> int:
        return config.block

    def steps_of_a_block(
        self, wishes: DllmParams, config: DllmConfig, block: int, max_tokens: int
    ) -> int:
        steps = block if wishes.steps is None else wishes.steps
        return min(steps, max_tokens) if config.cap_steps else steps

    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> Plan:
        block = decoding.block_length
        if decoding.buffer_size == 1:
            cuts = config.facts.cuts_last_block
            end = prompt_len + max_tokens if cuts else UNBOUNDED
            return BlockCausal(Grid(0, block, end))
        end = round_up(prompt_len + max_tokens, block)
        grid = Grid(0, block, end)
        # More blocks than an answer has are never open. One that has a single block
        # keeps the room for two, which tells it from requests without a buffer.
        blocks = (end - grid.start_of(prompt_len)) // block
        size = min(decoding.buffer_size, max(2, blocks))
        return Buffered(grid, prompt_len, size)

    def check_plan(
        self,
        plan: Plan,
        decoding: Decoding,
        config: DllmConfig,
        prompt_len: int,
        max_tokens: int,
    ) -> None:
        if not isinstance(plan, Buffered):
            return
        first = plan.first(None)
        forwarded = plan.span(first, plan.prompt, None).length
        for name, limit in config.facts.budgets.items():
            if forwarded > limit:
                raise ValueError(
                    f"{PREFIX}buffer_size={decoding.buffer_size}: {plan.size} blocks "
                    f"of {plan.grid.block} tokens are {forwarded} tokens in flight, "
                    f"and a forward holds {limit} ({name}); "
                    f"allowed: 1 to {limit // plan.grid.block}"
                )

    def end_of_canvas(self, config: DllmConfig, length: int) -> int:
        # A canvas ends on a block border, which may lie past the longest request.
        return round_up(length, config.block)
