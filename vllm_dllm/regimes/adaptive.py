"""AdaBlock on a model with full attention: blocks that end where the text does."""

from vllm_dllm import span
from vllm_dllm.config import DllmConfig
from vllm_dllm.params import DllmParams
from vllm_dllm.regimes.full_attention import FullAttentionRegime
from vllm_dllm.settled import NEVER, Decoding

BLOCK = 32
"""The authors' length of a block, where neither request nor server names one."""


class AdaptiveRegime(FullAttentionRegime):
    def block_of_an_answer(
        self, wishes: DllmParams, config: DllmConfig, max_tokens: int
    ) -> int:
        return wishes.block_length or config.block_size or BLOCK

    def plan(
        self, decoding: Decoding, config: DllmConfig, prompt_len: int, max_tokens: int
    ) -> span.Plan:
        default, suffix = decoding.block_length, len(decoding.suffix_token_ids)
        ends = decoding.parameters["delimiter_threshold"] != NEVER
        window = max_tokens // 4 if ends and decoding.delimiter_ids else 0
        grid = span.full_attention_grid(
            prompt_len,
            max_tokens,
            max(default, window),
            config.facts.max_model_len,
            is_exact=True,
        )
        branch = 0
        if decoding.cfg_scale > 0:
            branch = span.round_up(grid.end + suffix, config.facts.page_size)
        return span.Adaptive(grid, decoding.cache, branch, suffix, default, window)
