"""Embeddings: what the model is given of a step in which tokens may be soft."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CompilationMode
from vllm.distributed.parallel_state import get_pp_group

from vllm_dllm.config import DllmConfig
from vllm_dllm.ops.mixture import mix
from vllm_dllm.worker.soft_tokens import SoftTokens
from vllm_dllm.worker.spans.batch import SpanBatch


class Embeddings:
    """Where nothing is compiled, steps without soft tokens go on with token ids.

    A compiled model, and a CUDA graph, has one of the two for good: with an engine that
    allows soft tokens, embeddings, which lie where they lay when it was captured.
    """

    def __init__(
        self, vllm_config: VllmConfig, model: nn.Module, device: torch.device
    ) -> None:
        model_config = vllm_config.model_config
        config = DllmConfig.of(model_config)
        self.embed = cast(Callable[[torch.Tensor], torch.Tensor], model.embed_input_ids)
        self.mask_token = torch.tensor([config.mask_token_id], device=device)
        self.is_first = get_pp_group().is_first_rank
        """Whether it is for this stage of a pipeline to embed."""
        self.has_adapters = vllm_config.lora_config is not None
        mode = vllm_config.compilation_config.mode
        self.buffer: torch.Tensor | None = None
        """[max_num_tokens, hidden], where each step has embeddings."""
        compiles = mode not in (None, CompilationMode.NONE)
        if self.is_first and config.facts.soft_tokens and compiles:
            self.buffer = torch.zeros(
                vllm_config.scheduler_config.max_num_batched_tokens,
                model_config.get_inputs_embeds_size(),
                dtype=model_config.dtype,
                device=device,
            )

    def dummy_inputs(self, num_tokens: int) -> dict[str, Any]:
        """What takes the place of token ids in a batch that stands for others."""
        if self.buffer is None:
            return {}
        return {"input_ids": None, "inputs_embeds": self.buffer[:num_tokens]}

    def inputs(
        self,
        spans: SpanBatch,
        soft: SoftTokens,
        token_ids: torch.Tensor,
        padded: int,
    ) -> dict[str, Any]:
        """What takes the place of token ids in a step; nothing where these will do.

        Args:
            token_ids: [num_tokens] int64.
            padded: number of tokens of the CUDA graph, or of the step.
        """
        has_soft = self.is_first and soft.are_in(spans.slot_np)
        if not has_soft and self.buffer is None:
            return {}
        embeddings = self.embed(token_ids)
        if has_soft:
            # An adapter may change embeddings: each row has the mask of its own.
            count = len(token_ids) if self.has_adapters else 1
            masks = self.embed(self.mask_token.expand(count))
            mix(embeddings, masks, soft.shares(spans))
        if self.buffer is not None:
            self.buffer[: len(embeddings)] = embeddings
            embeddings = self.buffer[:padded]
        return {"input_ids": None, "inputs_embeds": embeddings}
