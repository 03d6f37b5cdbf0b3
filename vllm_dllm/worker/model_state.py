"""DenoisingModelState: a batch of spans as inputs and attention metadata."""

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

from vllm_dllm.config import DllmConfig
from vllm_dllm.progress import StepPlan
from vllm_dllm.regimes.registry import regime_of
from vllm_dllm.runs import NO_RUN, Runs
from vllm_dllm.worker.embeddings import Embeddings
from vllm_dllm.worker.grammar import show_forced
from vllm_dllm.worker.sampler import DenoisingSampler
from vllm_dllm.worker.slots import Slots
from vllm_dllm.worker.spans.batch import SpanBatch


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
        self.slots = Slots(
            DllmConfig.of(self.model_config),
            self.max_num_reqs,
            self.model_config.get_vocab_size(),
            device,
        )
        self.is_causal = regime_of(self.slots.config.facts).causal
        self.attended: tuple[tuple[Any, ...] | None, dict[str, Any]] = None, {}
        """The metadata of the last step, which the next one takes if its rows are the
        same, as inside a block."""
        self.embeddings = Embeddings(vllm_config, model, device)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        params = new_req_data.sampling_params
        assert params is not None
        self.slots.add_request(
            new_req_data.req_id,
            req_index,
            params,
            new_req_data.prompt_len,
            self.max_model_len,
        )

    def custom_sampler(self, sampler: Sampler) -> tuple[DenoisingSampler, None]:
        return DenoisingSampler(self.slots, sampler.req_states, sampler), None

    def prepare_inputs_embeds(
        self,
        scheduled_encoder_inputs: dict[str, list[int]],
        input_batch: InputBatch,
        req_states: RequestState,
    ) -> torch.Tensor | None:
        # Asked of models that see more than text; see `prepare_inputs`.
        return None

    def lay_out(
        self, input_batch: InputBatch, req_states: RequestState, runs: Runs
    ) -> None:
        """Find what the step forwards; everything else of the step reads it.

        Before the pages of its tokens are looked up, because the second branch of a
        guided request is moved to its own.

        `runs`: of requests with structured output.
        """
        known = req_states.total_len.gpu[input_batch.idx_mapping].long()
        spans = self.slots.layout.lay_out(input_batch, known)
        blocks = self.slots.canvas.tokens.values
        spans = self.slots.layout.arrange(spans, blocks)
        spans.is_busy = StepPlan.is_of_busy_server(input_batch)
        if runs:
            spans.runs = [runs.get(req_id, NO_RUN) for req_id in input_batch.req_ids]
            show_forced(spans, req_states.all_token_ids.gpu)
        spans.attach(input_batch)

    def prepare_inputs(
        self, input_batch: InputBatch, req_states: RequestState
    ) -> dict[str, Any]:
        """Token ids of the spans, or embeddings, and positions in their sequences.

        The runner has filled in prompt tokens alone. Written in place, for CUDA graphs.
        """
        spans = SpanBatch.of(input_batch)
        padded = input_batch.num_tokens_after_padding
        if spans is None:
            return self.embeddings.dummy_inputs(padded)
        num_tokens = input_batch.num_tokens
        token_ids = input_batch.input_ids[:num_tokens]
        token_ids[:] = self.slots.layout.token_ids(
            spans, self.slots.canvas.tokens.values, req_states.all_token_ids.gpu
        )
        if spans.branches is not None or spans.place is not None:
            input_batch.positions[:num_tokens] = spans.position
        return self.embeddings.inputs(spans, self.slots.soft, token_ids, padded)

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return self.embeddings.dummy_inputs(num_tokens)

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
        spans = SpanBatch.of(input_batch)
        rows = self.slots.layout.attention_rows(input_batch, num_reqs, spans)
        if cudagraph_mode == CUDAGraphMode.FULL and rows.owner is not None:
            rows = rows.as_requests_of(input_batch, block_tables)
        pages = slot_mappings, *block_tables
        same = None if for_capture or spans is None else rows.same_as(pages)
        if same is not None and same == self.attended[0]:
            return self.attended[1]
        metadata = build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=rows.num_rows,
            num_tokens=num_tokens,
            query_start_loc_gpu=rows.query_start_device,
            query_start_loc_cpu=rows.query_start,
            max_query_len=rows.max_query_len,
            seq_lens=rows.seq_lens,
            max_seq_len=self.max_model_len if for_capture else rows.max_seq_len,
            block_tables=[rows.block_table(table) for table in block_tables],
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            for_cudagraph_capture=for_capture,
            causal=rows.causal or self.is_causal,
        )
        self.attended = same, metadata
        return metadata
