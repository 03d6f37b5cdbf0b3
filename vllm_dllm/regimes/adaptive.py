"""AdaBlock on a model with full attention: blocks that end where the text does."""

from vllm_dllm.config import DllmConfig
from vllm_dllm.plans.adaptive import Adaptive
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.grid import answer_grid
from vllm_dllm.regimes.full_attention import OwnBlocksRegime, branch_behind
from vllm_dllm.settled import NEVER, Decoding


class AdaptiveRegime(OwnBlocksRegime):
    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> Plan:
        default, suffix = decoding.block_length, len(decoding.given.suffix)
        ends = decoding.parameters["delimiter_threshold"] != NEVER
        window = max_tokens // 4 if ends and decoding.delimiter_ids else 0
        grid = answer_grid(
            prompt_len,
            max_tokens,
            max(default, window),
            config.facts.max_model_len,
            is_exact=True,
        )
        branch = branch_behind(grid.end + suffix, decoding, config)
        return Adaptive(grid, decoding.cache, branch, suffix, default, window)
