"""Which layout a model's attention asks for."""

from typing import ClassVar

from vllm_dllm.config import Facts
from vllm_dllm.plans.adaptive import Adaptive
from vllm_dllm.plans.after_prompt import AfterPrompt
from vllm_dllm.plans.base import Plan
from vllm_dllm.plans.full_attention import FullAttention
from vllm_dllm.worker.spans.after_prompt import AfterPromptLayout
from vllm_dllm.worker.spans.base import Layout
from vllm_dllm.worker.spans.block_causal import BlockCausalLayout
from vllm_dllm.worker.spans.by_plan import ByPlan
from vllm_dllm.worker.spans.full_attention import FullAttentionLayout
from vllm_dllm.worker.spans.seeded import SeededLayout
from vllm_dllm.worker.spans.seeded_causal import SeededCausalLayout
from vllm_dllm.worker.spans.window import WindowLayout


class FullAttentionLayouts(ByPlan):
    of_plans: ClassVar[dict[type[Plan], type[Layout]]] = {
        FullAttention: FullAttentionLayout,
        Adaptive: FullAttentionLayout,
        AfterPrompt: AfterPromptLayout,
    }


LAYOUTS: dict[str, type[Layout]] = {
    "block_causal": BlockCausalLayout,
    "seeded": SeededLayout,
    "seeded_causal": SeededCausalLayout,
    "full": FullAttentionLayouts,
    "window": WindowLayout,
}


def layout_class(facts: Facts) -> type[Layout]:
    return LAYOUTS[facts.attention]
