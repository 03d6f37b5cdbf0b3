"""Slots: all that the worker keeps of its requests, by slot.

A request owns one slot while it runs on the worker, as in vLLM's `RequestState`.
"""

import torch
from vllm.sampling_params import SamplingParams

from vllm_dllm.config import DllmConfig
from vllm_dllm.request import decoding_of, plan_of
from vllm_dllm.worker.canvas import Canvas
from vllm_dllm.worker.logprobs import Logprobs
from vllm_dllm.worker.memory import SuspendedBlocks
from vllm_dllm.worker.rule_tables import RuleTables
from vllm_dllm.worker.sampling import Sampling
from vllm_dllm.worker.soft_tokens import SoftTokens
from vllm_dllm.worker.spans.buffers import Buffers
from vllm_dllm.worker.spans.registry import layout_class
from vllm_dllm.worker.telling import Telling


class Slots:
    def __init__(
        self, config: DllmConfig, num_slots: int, vocab: int, device: torch.device
    ) -> None:
        self.config = config
        mask_token_id = config.mask_token_id
        self.buffers = Buffers(num_slots, device)
        layout = layout_class(config.facts)
        self.layout = layout(config, num_slots, device, self.buffers)
        self.canvas = Canvas(num_slots, config.block_size or 1, mask_token_id, device)
        self.rules = RuleTables(num_slots, device)
        self.soft = SoftTokens(num_slots, device)
        self.sampling = Sampling(num_slots, vocab, device, config.facts)
        never_answered = (mask_token_id, *config.facts.never_answered)
        self.logprobs = Logprobs(vocab, never_answered, device)
        self.telling = Telling()
        self.suspended = SuspendedBlocks(
            [
                *(self.buffers, self.layout.adaptive),
                *(self.canvas, self.rules, self.soft, self.logprobs),
            ]
        )

    def add_request(
        self,
        req_id: str,
        slot: int,
        params: SamplingParams,
        prompt_len: int,
        max_model_len: int,
    ) -> None:
        """Start a request in its slot, or go on where it was preempted."""
        max_tokens = min(params.max_tokens, max_model_len - prompt_len)
        decoding = decoding_of(params, self.config, max_tokens)
        plan = plan_of(decoding, self.config, prompt_len, max_tokens)
        self.buffers.add_request(slot, decoding, plan)
        block, size = plan.grid.block, int(self.buffers.size_np[slot])
        self.layout.add_request(slot, decoding, plan)
        self.layout.adaptive.add_request(slot, decoding, plan)
        self.layout.given.add_request(slot, decoding, plan)
        self.canvas.add_request(slot, block, prompt_len + max_tokens, size)
        self.rules.add_request(slot, decoding, block)
        self.soft.add_request(slot, decoding, block)
        self.sampling.add_request(req_id, slot, params, prompt_len, decoding)
        self.logprobs.add_request(slot, params, block * size)
        self.telling.add_request(slot, decoding, plan)
        self.suspended.resume(req_id, slot)

    def suspend(self, req_id: str, slot: int) -> None:
        """Keep the half-decoded block of a request that is preempted."""
        self.suspended.suspend(req_id, slot)

    def release(self, slot: int) -> None:
        """Drop what is kept for a request that leaves its slot."""
        self.sampling.drop(slot)
        self.logprobs.drop(slot)

    def forget(self, req_id: str) -> None:
        """Drop what is kept of a request that has ended."""
        self.suspended.forget(req_id)
