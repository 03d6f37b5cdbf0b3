"""DenoisingModelState: model inputs and attention metadata of a batch of spans."""

from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup

from vllm_dllm import request
from vllm_dllm.config import DllmConfig
from vllm_dllm.worker.attention import (
    AttentionRows,
    block_causal_rows,
    guided_rows,
    whole_rows,
)
from vllm_dllm.worker.canvas import Canvas
from vllm_dllm.worker.logprobs import Logprobs
from vllm_dllm.worker.sampler import DenoisingSampler
from vllm_dllm.worker.sampling import Sampling


class DenoisingModelState(ModelState):
    num_new_sampled_tokens_per_step = 0
    """No token is sampled besides those of the canvas."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.config = DllmConfig.of(self.model_config)
        facts, mask_token_id = self.config.facts, self.config.mask_token_id
        self.canvas = Canvas(
            self.max_num_reqs,
            self.config.block_size or 1,
            mask_token_id,
            device,
            facts.full_attention,
        )
        vocab = self.model_config.get_vocab_size()
        self.sampling = Sampling(self.max_num_reqs, vocab, device, facts)
        self.logprobs = Logprobs(vocab, mask_token_id, device)
        self.seq_lens = torch.zeros(self.max_num_reqs, dtype=torch.int32, device=device)
        """Full attention: keys that each request of a step sees. In one place, where
        CUDA graphs find it."""

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        params = new_req_data.sampling_params
        assert params is not None
        req_id, prompt_len = new_req_data.req_id, new_req_data.prompt_len
        max_tokens = min(params.max_tokens, self.max_model_len - prompt_len)
        dllm = request.decoding_of(params, self.config, max_tokens)
        plan = request.plan_of(dllm, self.config, prompt_len, max_tokens)
        self.canvas.add_request(
            req_id, req_index, dllm, plan, max_len=prompt_len + max_tokens
        )
        self.sampling.add_request(req_id, req_index, params, prompt_len, dllm)
        self.logprobs.add_request(req_id, req_index, params, plan.grid.block)

    def suspend(self, req_id: str, req_index: int) -> None:
        """Keep the half-decoded block of a request that is preempted."""
        self.canvas.suspend(req_id, req_index)
        self.logprobs.suspend(req_id, req_index)

    def forget(self, req_id: str) -> None:
        """Drop what is kept of a request that has ended."""
        self.canvas.forget(req_id)
        self.logprobs.forget(req_id)

    def custom_sampler(self, sampler: Sampler) -> tuple[DenoisingSampler, None]:
        denoising = DenoisingSampler(
            sampler,
            self.canvas,
            self.sampling,
            self.logprobs,
            self.config.facts.shifted_logits,
        )
        return denoising, None

    def prepare_inputs_embeds(
        self,
        scheduled_encoder_inputs: dict[str, list[int]],
        input_batch: InputBatch,
        req_states: RequestState,
    ) -> torch.Tensor | None:
        return None

    def prepare_inputs(
        self, input_batch: InputBatch, req_states: RequestState
    ) -> dict[str, Any]:
        """Token ids of the spans: known tokens, the block under denoising, masks.

        The runner has filled in prompt tokens alone. Written in place, for CUDA graphs.
        """
        canvas, num_tokens = self.canvas, input_batch.num_tokens
        req_slot = input_batch.idx_mapping
        position = input_batch.positions[:num_tokens]
        known = req_states.total_len.gpu[req_slot].long()
        start, length = canvas.block_of(req_slot, known)
        drafts = input_batch.num_draft_tokens_per_req  # None in a warm-up
        if canvas.full_attention and drafts is not None:
            # A step that decides nothing makes the keys of the block's refresh again,
            # when the whole block was masks.
            decides = async_tensor_h2d(drafts > 0, self.device)
            known, length = torch.where(decides, known, start), length * decides
        lengths = async_tensor_h2d(
            input_batch.num_scheduled_tokens, self.device, torch.int64
        )
        owner = torch.repeat_interleave(lengths, output_size=num_tokens)
        slot, known, start = req_slot[owner], known[owner], start[owner]
        unconditional = self._leave_twins(input_batch, slot, position)

        all_token_ids = req_states.all_token_ids.gpu
        last = all_token_ids.shape[1] - 1
        column = (position - start).clamp(0, canvas.width - 1)
        in_block = (position >= known) & (position < start + length[owner])
        ids = torch.where(in_block, canvas.tokens[slot, column], canvas.mask_token_id)
        if canvas.any_infilling(input_batch.idx_mapping_np):
            in_suffix, suffix = canvas.suffix_at(slot, position)
            if unconditional is not None:
                in_suffix &= ~unconditional
            ids = torch.where(in_suffix, suffix, ids)
        is_known = position < known
        if unconditional is not None:
            is_known &= ~(unconditional & (position < canvas.origin[slot]))
        known_ids = all_token_ids[slot, position.clamp(max=last)]
        input_batch.input_ids[:num_tokens] = torch.where(is_known, known_ids, ids)
        return {}

    def place_twins(self, input_batch: InputBatch) -> None:
        """Move the second half of a guided span to the pages of its branch.

        The runner has numbered the tokens of a span from its start on. That suits a
        refresh; a later step is two runs of positions, one in each branch.
        """
        slots = input_batch.idx_mapping_np
        for index in np.flatnonzero(self.canvas.twin_np[slots]):
            if input_batch.num_computed_tokens_np[index] == 0:
                continue
            begin, end = input_batch.query_start_loc_np[index : index + 2].tolist()
            half = (end - begin) // 2
            twin = int(self.canvas.twin_np[slots[index]])
            input_batch.positions[begin + half : end] += twin - half

    def _leave_twins(
        self, input_batch: InputBatch, slot: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor | None:
        """Give the unconditional branches the positions of their sequences, in place.

        Returns:
            [num_tokens] bool: the tokens of these branches; None if there are none.
        """
        if not self.canvas.any_guided(input_batch.idx_mapping_np):
            return None
        twin = self.canvas.twin[slot]
        unconditional = (twin > 0) & (position >= twin)
        position -= twin * unconditional
        return unconditional

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {}

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: list[list[AttentionGroup]],
        kv_cache_config: KVCacheConfig,
        for_capture: bool = False,
        ubatch_idx: int = 0,
    ) -> dict[str, Any]:
        if cudagraph_mode == CUDAGraphMode.FULL:
            num_reqs = input_batch.num_reqs_after_padding
            num_tokens = input_batch.num_tokens_after_padding
        else:
            num_reqs = input_batch.num_reqs
            num_tokens = input_batch.num_tokens
        rows = self._attention_rows(input_batch, num_reqs)
        if for_capture:
            max_seq_len = self.max_model_len
        else:
            ends = self.canvas.seq_len_np[input_batch.idx_mapping_np]
            spans = input_batch.seq_lens_cpu_upper_bound[:num_reqs]
            max_seq_len = max(int(spans.max()), int(ends.max()))
        return build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=rows.num_rows,
            num_tokens=num_tokens,
            query_start_loc_gpu=rows.query_start_device,
            query_start_loc_cpu=rows.query_start,
            max_query_len=rows.max_query_len,
            seq_lens=rows.seq_lens,
            max_seq_len=max_seq_len,
            block_tables=[rows.block_table(table) for table in block_tables],
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            for_cudagraph_capture=for_capture,
            causal=False,
        )

    def _attention_rows(self, input_batch: InputBatch, num_reqs: int) -> AttentionRows:
        canvas, facts = self.canvas, self.config.facts
        if not canvas.full_attention:
            return block_causal_rows(input_batch, num_reqs, self.config.block)
        slots = input_batch.idx_mapping_np
        if canvas.any_guided(slots):
            return guided_rows(
                input_batch,
                canvas.seq_len_np[slots],
                canvas.twin_np[slots],
                facts.page_size,
                self.device,
            )
        # At least the span itself: a dummy batch (profiling, warm-up) has no requests.
        seq_lens = self.seq_lens[:num_reqs].copy_(input_batch.seq_lens[:num_reqs])
        ends = canvas.seq_len[input_batch.idx_mapping]
        torch.maximum(seq_lens[: len(ends)], ends.int(), out=seq_lens[: len(ends)])
        return whole_rows(input_batch, num_reqs, seq_lens)
