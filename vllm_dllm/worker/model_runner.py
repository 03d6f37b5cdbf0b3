"""DenoisingModelRunner: vLLM's Model Runner V2 where denoising needs more of it."""

from typing import Any

import torch
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.worker.cpu.model_runner import CPUModelRunner
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.sample.output import SamplerOutput


class DenoisingModelRunner(GPUModelRunner):
    def finish_requests(self, scheduler_output: SchedulerOutput) -> None:
        for req_id in scheduler_output.preempted_req_ids or ():
            slot = self.req_states.req_id_to_index.get(req_id)
            if slot is not None:
                self.model_state.suspend(req_id, slot)
        for req_id in scheduler_output.finished_req_ids:
            self.model_state.forget(req_id)
        super().finish_requests(scheduler_output)

    def gather_batch_req_state(self, *args: Any, **kwargs: Any) -> Any:
        state, uniform_tokens = super().gather_batch_req_state(*args, **kwargs)
        canvas = self.model_state.canvas
        if state is not None and canvas.any_guided(state.idx_mapping_np):
            # Two rows of attention for a request: no CUDA graph of the whole model,
            # which is captured with one, may take the step.
            uniform_tokens = None
        return state, uniform_tokens

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> InputBatch:
        input_batch = super().prepare_inputs(*args, **kwargs)
        # Before the pages of its tokens are looked up.
        self.model_state.place_twins(input_batch)
        return input_batch

    @torch.inference_mode()
    def _dummy_sampler_run(self, hidden_states: torch.Tensor) -> None:
        """The memory of a step's logits, for vLLM's profiling run.

        Of as many rows as a step may have; vLLM itself takes one per request. On CPU,
        where nothing depends on it, that would take long.
        """
        rows = len(hidden_states)
        if self.model_state.canvas.whole_blocks:
            block = self.model_state.config.block_size or self.max_model_len
            rows = min(self.max_num_tokens, self.max_num_reqs * block)
        dummy = hidden_states.new_zeros(rows, hidden_states.shape[1])
        self.sampler.profile(self.model.compute_logits(dummy))

    def sample(
        self,
        hidden_states: torch.Tensor,
        input_batch: InputBatch,
        grammar_output: GrammarOutput | None,
    ) -> tuple[SamplerOutput, torch.Tensor, torch.Tensor]:
        if input_batch.num_draft_tokens == 0:
            # Prefill chunks only: there is no row to compute logits of, and a
            # collective over zero rows fails on CPU.
            output = self.sampler.commit_only(input_batch)
        else:
            batch, rows = self.sampler.gather(input_batch)
            if self.lora_config is not None:
                self.map_adapters(input_batch, rows)
            logits = self.model.compute_logits(hidden_states[rows])
            output = self.sampler.denoise(logits, batch, input_batch, grammar_output)
        return output, output.num_sampled, output.num_rejected

    def map_adapters(self, input_batch: InputBatch, rows: torch.Tensor) -> None:
        """Tell the head which adapter each row of logits is of.

        vLLM has told it of one row per request.

        Args:
            rows: [rows] int64, of the hidden states.
        """
        _, adapter_of_token, adapters = self.lora_state.make_lora_inputs(
            input_batch.req_ids,
            input_batch.idx_mapping_np,
            input_batch.num_scheduled_tokens,
        )
        if adapters:
            adapter_of_row = tuple(adapter_of_token[row] for row in rows.tolist())
            self._set_active_loras(adapter_of_row, adapter_of_token, adapters)

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        output = super().sample_tokens(grammar_output)
        report = self.sampler.take_report()
        if report.is_worth_sending:
            report.attach(output.model_runner_output)
        return output


class DenoisingCPUModelRunner(DenoisingModelRunner, CPUModelRunner):
    """The same on CPU."""
