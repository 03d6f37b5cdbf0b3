"""D2F on a model with full attention: block-causal, from the end of the prompt on."""

from typing import Any

from vllm_dllm.config import DllmConfig
from vllm_dllm.params import PREFIX, DllmParams
from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.plans.base import Plan, Span
from vllm_dllm.plans.grid import answer_grid
from vllm_dllm.quoting import quoted
from vllm_dllm.regimes.full_attention import OwnBlocksRegime
from vllm_dllm.settled import Decoding

IDLE: dict[str, str] = {
    "cache": "whose KV cache is exact",
    "cfg_scale": "which has no unconditional branch",
    "suffix_token_ids": "whose blocks see nothing of what follows them",
    "canvas_token_ids": "whose blocks see nothing of what follows them",
}
"""Fields that have no meaning, and why. 0 and nothing at all may be asked for."""


class AfterPromptRegime(OwnBlocksRegime):
    why_no_buffers = "is not for d2f, which may have all blocks of an answer in flight"

    def check_wishes(
        self, wishes: DllmParams, own: dict[str, Any], config: DllmConfig
    ) -> None:
        if "buffer_size" in own:
            raise ValueError(f"{PREFIX}buffer_size=1 {self.why_no_buffers}")
        for name, reason in IDLE.items():
            if own.get(name):
                raise ValueError(
                    f"{PREFIX}{name}={quoted(own[name])} has no meaning for the "
                    f"decoding rule {wishes.algorithm!r}, {reason}; leave it out"
                )
        super().check_wishes(wishes, own, config)

    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> Plan:
        grid = answer_grid(
            prompt_len, max_tokens, decoding.block_length, config.facts.max_model_len
        )
        return AfterPrompt(grid, repeats=int(config.facts.shifted_logits))

    def longest_span(self, plan: Plan, prompt_len: int) -> Span:
        """That of a request whose KV is lost when all of its blocks are open."""
        return plan.span(0, prompt_len, plan.grid.end)
