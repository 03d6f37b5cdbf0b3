"""Full attention: every position sees the whole sequence, and the canvas is the answer.

A request chooses the length of its blocks; a step forwards all of it or waits.
"""

from typing import Any

from vllm_dllm.config import DllmConfig
from vllm_dllm.given import NOTHING, most_gaps
from vllm_dllm.params import PREFIX, DllmParams
from vllm_dllm.plans.base import Plan, Span
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.plans.grid import answer_grid, round_up
from vllm_dllm.quoting import quoted
from vllm_dllm.regimes.base import Regime
from vllm_dllm.regimes.fields import refuse_window
from vllm_dllm.settled import Decoding

LONGEST_ROUNDING = 128
"""A block that is longer than this is no longer than the answer."""


class FullAttentionRegime(Regime):
    causal = False
    has_buffers = False
    has_soft_tokens = False
    forwards_whole = True

    def check_wishes(
        self, wishes: DllmParams, own: dict[str, Any], config: DllmConfig
    ) -> None:
        refuse_window(own)
        facts = config.facts
        if facts.eos_token_id is None:
            for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
                if getattr(wishes, name):
                    raise ValueError(
                        f"{PREFIX}{name}=True: the checkpoint names no end of the text "
                        "(eos_token_id)"
                    )
        for name in ("suffix_token_ids", "canvas_token_ids", "delimiter_ids"):
            for token in getattr(wishes, name):
                if token >= facts.vocab_size:
                    raise ValueError(
                        f"{PREFIX}{name}: {quoted(token)} is not in the vocabulary; "
                        f"allowed: 0 to {facts.vocab_size - 1}"
                    )
        longest = facts.max_model_len
        if wishes.block_length is not None and wishes.block_length > longest:
            raise ValueError(
                f"{PREFIX}block_length={wishes.block_length} is longer than any "
                f"answer; allowed: 1 to {longest} (max_model_len)"
            )

    def block_of_an_answer(
        self, wishes: DllmParams, config: DllmConfig, max_tokens: int
    ) -> int:
        # An answer is rounded up to whole blocks, and a block that is much longer than
        # the answer would be masks that nobody asked for.
        block = wishes.block_length or config.block_size or max_tokens
        return min(block, max(max_tokens, LONGEST_ROUNDING))

    def steps_of_a_block(
        self, wishes: DllmParams, config: DllmConfig, block: int, max_tokens: int
    ) -> int:
        # The authors spread `steps` over all blocks of the answer.
        if wishes.steps is None:
            given = wishes.canvas_token_ids
            return most_gaps(given, block) if given else block
        return max(1, wishes.steps // max(1, -(-max_tokens // block)))

    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> Plan:
        suffix = len(decoding.given.suffix)
        grid = answer_grid(
            prompt_len,
            max_tokens,
            decoding.block_length,
            config.facts.max_model_len,
            is_exact=decoding.given != NOTHING,
        )
        branch = branch_behind(grid.end + suffix, decoding, config)
        return FullAttention(grid, decoding.cache, branch, suffix)

    def check_plan(
        self,
        plan: Plan,
        decoding: Decoding,
        config: DllmConfig,
        prompt_len: int,
        max_tokens: int,
    ) -> None:
        longest = self.longest_span(plan, prompt_len)
        facts = config.facts
        limits = facts.budgets | {"max_model_len": facts.max_model_len}
        for name, limit in limits.items():
            if longest.length > limit:
                suffix = f" and the suffix ({len(decoding.given.suffix)} tokens)"
                twice = f", twice with {PREFIX}cfg_scale={decoding.cfg_scale}"
                raise ValueError(
                    f"the prompt ({prompt_len} tokens) and the canvas "
                    f"({plan.grid.end - prompt_len} tokens: max_tokens={max_tokens} in "
                    f"blocks of {decoding.block_length})"
                    f"{suffix if decoding.given.suffix else ''}"
                    f"{twice if longest.branch else ''} "
                    f"are {longest.length} tokens, which one forward must hold; "
                    f"allowed: {limit} ({name}). Ask for a smaller max_tokens."
                )

    def longest_span(self, plan: Plan, prompt_len: int) -> Span:
        """A refresh."""
        return plan.span(0, prompt_len, None)

    def end_of_canvas(self, config: DllmConfig, length: int) -> int:
        return length


def branch_behind(end: int, decoding: Decoding, config: DllmConfig) -> int:
    """Where the unconditional branch of a sequence that ends at `end` lies (`Span`);
    0 without guidance."""
    if decoding.cfg_scale <= 0:
        return 0
    return round_up(end, config.facts.page_size)


class OwnBlocksRegime(FullAttentionRegime):
    """Of rules whose blocks are no shares of the answer."""

    BLOCK = 32
    """The authors' length of a block, where neither request nor server names one."""

    def block_of_an_answer(
        self, wishes: DllmParams, config: DllmConfig, max_tokens: int
    ) -> int:
        return wishes.block_length or config.block_size or self.BLOCK
