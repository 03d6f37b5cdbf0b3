"""DenoisingModelState: model inputs and attention metadata of a batch of spans."""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
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
from vllm_dllm.worker.attention import block_causal_rows
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
        self.block = self.config.block_size
        self.canvas = Canvas(
            self.max_num_reqs, self.block, self.config.mask_token_id, device
        )
        vocab = self.model_config.get_vocab_size()
        self.sampling = Sampling(self.max_num_reqs, vocab, device)
        self.logprobs = Logprobs(self.block, vocab, self.config.mask_token_id, device)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        params = new_req_data.sampling_params
        assert params is not None
        req_id, prompt_len = new_req_data.req_id, new_req_data.prompt_len
        self.canvas.add_request(
            req_id,
            req_index,
            request.resolve(params.extra_args, self.config, params.max_tokens),
            max_len=min(prompt_len + params.max_tokens, self.max_model_len),
        )
        self.sampling.add_request(req_id, req_index, params, prompt_len)
        self.logprobs.add_request(req_id, req_index, params)

    def suspend(self, req_id: str, req_index: int) -> None:
        """Keep the half-decoded block of a request that is preempted."""
        self.canvas.suspend(req_id, req_index)
        self.logprobs.suspend(req_id, req_index)

    def forget(self, req_id: str) -> None:
        """Drop what is kept of a request that has ended."""
        self.canvas.forget(req_id)
        self.logprobs.forget(req_id)

    def custom_sampler(self, sampler: Sampler) -> tuple[DenoisingSampler, None]:
        return DenoisingSampler(
            sampler, self.canvas, self.sampling, self.logprobs
        ), None

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
        """Token ids of the spans: known tokens, then the canvas.

        The runner has filled in prompt tokens alone. Written in place, for CUDA graphs.
        """
        num_tokens = input_batch.num_tokens
        lengths = torch.from_numpy(input_batch.num_scheduled_tokens)
        slot = torch.repeat_interleave(
            input_batch.idx_mapping,
            lengths.to(self.device, torch.int64),
            output_size=num_tokens,
        )
        position = input_batch.positions[:num_tokens]
        all_token_ids = req_states.all_token_ids.gpu
        last = all_token_ids.shape[1] - 1
        known = all_token_ids[slot, position.clamp(max=last)]
        canvas = self.canvas.tokens[slot, position % self.block]
        is_known = position < req_states.total_len.gpu[slot]
        input_batch.input_ids[:num_tokens] = torch.where(is_known, known, canvas)
        return {}

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
        rows = block_causal_rows(input_batch, num_reqs, self.block)
        if for_capture:
            max_seq_len = self.max_model_len
        else:
            max_seq_len = int(input_batch.seq_lens_cpu_upper_bound[:num_reqs].max())
        return build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=len(rows.owner),
            num_tokens=num_tokens,
            query_start_loc_gpu=rows.query_start.to(self.device),
            query_start_loc_cpu=rows.query_start,
            max_query_len=rows.max_query_len,
            seq_lens=rows.seq_lens,
            max_seq_len=max_seq_len,
            block_tables=[table[rows.owner] for table in block_tables],
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            for_cudagraph_capture=for_capture,
            causal=False,
        )
