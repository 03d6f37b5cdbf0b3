"""DenoisingModelRunner: vLLM's Model Runner V2 where denoising needs more of it."""

from typing import Any

import torch
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.worker.cpu.model_runner import CPUModelRunner
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from vllm_dllm.progress import StepPlan
from vllm_dllm.runs import sent_with
from vllm_dllm.worker.sampler import DenoisingSampler
from vllm_dllm.worker.spans.batch import SpanBatch
from vllm_dllm.worker.stages import Stages


class NoPromptLogprobs:
    """Takes the place of vLLM's worker for logprobs of prompts: no request may ask for
    any (admission.py), and it looks for those that do in every step."""

    def add_request(self, *_: Any) -> None:
        pass

    def remove_request(self, *_: Any) -> None:
        pass

    def compute_prompt_logprobs(self, *_: Any) -> dict[str, Any]:
        return {}

    def compute_prompt_token_id_logprobs(self, *_: Any) -> dict[str, Any]:
        return {}


class DenoisingModelRunner(GPUModelRunner):
    pp_handler: Any
    """`Stages` where the model is a pipeline, else None."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self.model.refuse_incomplete()
        self.prompt_logprobs_worker = NoPromptLogprobs()
        if self.use_pp:
            slots, req_states = self.model_state.slots, self.req_states
            sampler = self.sampler or DenoisingSampler(slots, req_states, None)
            self.pp_handler = Stages(self.pp_handler, sampler, self.postprocess_sampled)

    def finish_requests(self, scheduler_output: SchedulerOutput) -> None:
        slots = self.model_state.slots
        if self.pp_handler is not None:
            self.pp_handler.settle(self.slots_of(scheduler_output))
        preempted = scheduler_output.preempted_req_ids or set()
        for req_id in preempted | scheduler_output.finished_req_ids:
            slot = self.req_states.req_id_to_index.get(req_id)
            if slot is not None:
                if req_id in preempted:
                    slots.suspend(req_id, slot)
                slots.release(slot)
        for req_id in scheduler_output.finished_req_ids:
            slots.forget(req_id)
        super().finish_requests(scheduler_output)

    def slots_of(self, scheduler_output: SchedulerOutput) -> set[int]:
        """Slots of the requests that a step forwards, or that have left."""
        req_ids = scheduler_output.num_scheduled_tokens.keys()
        req_ids |= scheduler_output.finished_req_ids
        req_ids |= scheduler_output.preempted_req_ids or set()
        slot_of = self.req_states.req_id_to_index
        return {slot_of[req_id] for req_id in req_ids if req_id in slot_of}

    def gather_batch_req_state(self, *args: Any, **kwargs: Any) -> Any:
        state, uniform_tokens = super().gather_batch_req_state(*args, **kwargs)
        if state is not None:
            uniform_tokens = self.model_state.slots.layout.queries_of_rows(
                state.idx_mapping_np, state.num_scheduled_tokens, uniform_tokens
            )
        return state, uniform_tokens

    def prepare_inputs(
        self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any
    ) -> InputBatch:
        input_batch = super().prepare_inputs(scheduler_output, *args, **kwargs)
        StepPlan.of(scheduler_output).tell(input_batch)
        runs = sent_with(scheduler_output)
        self.model_state.lay_out(input_batch, self.req_states, runs)
        return input_batch

    @torch.inference_mode()
    def _dummy_sampler_run(self, hidden_states: torch.Tensor) -> None:
        """The memory of a step's logits, for vLLM's profiling run.

        Of as many rows as a step may have; vLLM itself takes one per request. On CPU,
        where nothing depends on it, that would take long.
        """
        rows = len(hidden_states)
        slots = self.model_state.slots
        if slots.canvas.whole_blocks:
            limits = self.max_num_reqs, self.max_num_tokens
            rows = slots.layout.max_logit_rows(slots.config, *limits)
        dummy = hidden_states.new_zeros(rows, hidden_states.shape[1])
        self.sampler.profile(self.model.compute_logits(dummy))

    def sample(
        self,
        hidden_states: torch.Tensor,
        input_batch: InputBatch,
        grammar_output: GrammarOutput | None,
    ) -> tuple[SamplerOutput, torch.Tensor, torch.Tensor]:
        spans = SpanBatch.of(input_batch)
        assert spans is not None
        if input_batch.num_draft_tokens == 0:
            # Prefill chunks only: there is no row to compute logits of.
            output = self.sampler.commit_only(spans)
        else:
            batch, rows = self.sampler.gather(spans)
            # Blocks may be given whole; a collective over zero rows fails on CPU.
            some = rows if rows.shape[0] else rows.new_zeros(1)
            if self.lora_config is not None:
                self.map_adapters(input_batch, some)
            logits = self.model.compute_logits(hidden_states[some])
            if some is not rows:
                logits = logits[:0]
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
        if self.sampler is None:  # a stage of a pipeline that decides nothing
            return output
        report = self.sampler.take_report()
        if report.is_worth_sending:
            report.attach(output.model_runner_output)
        return output


class DenoisingCPUModelRunner(DenoisingModelRunner, CPUModelRunner):
    """The same on CPU."""
