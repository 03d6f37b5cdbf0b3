"""d3LLM on a model with full attention: many blocks of an answer at once, each of which
sees all of it."""

from typing import Any

from vllm_dllm.config import DllmConfig
from vllm_dllm.params import PREFIX, DllmParams
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.quoting import quoted
from vllm_dllm.regimes.full_attention import OwnBlocksRegime
from vllm_dllm.settled import Decoding


class PipelinedRegime(OwnBlocksRegime):
    """To the engine the whole answer is one block; its parts are the rule's."""

    why_no_buffers = (
        "is not for d3llm, which may have all blocks of an answer in flight"
    )

    def check_wishes(
        self, wishes: DllmParams, own: dict[str, Any], config: DllmConfig
    ) -> None:
        if "buffer_size" in own:
            raise ValueError(f"{PREFIX}buffer_size=1 {self.why_no_buffers}")
        if own.get("cache", "none") != "none":
            raise ValueError(
                f"{PREFIX}cache={quoted(own['cache'])} is not defined for the decoding "
                f"rule {wishes.algorithm!r}, whose steps forward the whole canvas; "
                "leave it out"
            )
        super().check_wishes(wishes, own, config)

    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> Plan:
        plan = super().plan(decoding, config, prompt_len, max_tokens)
        assert isinstance(plan, FullAttention)
        grid = plan.grid._replace(block=plan.grid.end - plan.grid.origin)
        return plan._replace(grid=grid, cache="none")
