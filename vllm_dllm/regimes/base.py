"""Regime: what a model's attention means for its requests.

A regime has two more halves: what the engine is told (models/capacity.py), and how the
worker lays out its steps (worker/spans/).
"""

from typing import Any, Protocol

from vllm_dllm.config import DllmConfig
from vllm_dllm.params import DllmParams
from vllm_dllm.plans.base import Plan
from vllm_dllm.settled import Decoding


class Regime(Protocol):
    """All of a request's checks raise ValueError that names field, value and what is
    allowed."""

    causal: bool
    """Whether the rows of attention are causal in every step."""
    has_buffers: bool
    """Whether several blocks of a request may be under denoising at once, as many as it
    says."""
    why_no_buffers: str = (
        "is not for this model, whose blocks are decoded one after the other"
    )
    """What is wrong with a number of them, where there are none."""
    has_soft_tokens: bool
    """Whether tokens under denoising may be shown as mixtures with the mask."""
    forwards_whole: bool
    """Whether a step forwards all of a request, or waits."""
    rewrites_known: bool = False
    """Whether KV of known tokens of the block under denoising is written again."""

    def check_wishes(
        self, wishes: DllmParams, own: dict[str, Any], config: DllmConfig
    ) -> None:
        """Refuse what has no meaning here, before the length of the answer is known.

        Args:
            own: the fields that the request itself names.
        """
        ...

    def block_of_an_answer(
        self, wishes: DllmParams, config: DllmConfig, max_tokens: int
    ) -> int:
        """The block length of an answer that has at most `max_tokens`."""
        ...

    def steps_of_a_block(
        self, wishes: DllmParams, config: DllmConfig, block: int, max_tokens: int
    ) -> int:
        """The steps in which one block of that answer is to be decoded."""
        ...

    def plan(
        self,
        decoding: Decoding,
        config: DllmConfig,
        prompt_len: int,
        max_tokens: int,
    ) -> Plan:
        """What the steps of a request forward."""
        ...

    def check_plan(
        self,
        plan: Plan,
        decoding: Decoding,
        config: DllmConfig,
        prompt_len: int,
        max_tokens: int,
    ) -> None:
        """Refuse a request that would wait for ever, because no step can hold what it
        forwards at once."""
        ...

    def end_of_canvas(self, config: DllmConfig, length: int) -> int:
        """One past the last position that a request of `length` tokens forwards."""
        ...
