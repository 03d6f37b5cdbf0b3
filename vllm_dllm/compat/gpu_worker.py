"""The worker of vLLM for GPUs that runs our model runner."""

from vllm.v1.worker.gpu_worker import Worker

from vllm_dllm.compat.attention import size_attention_for_rows
from vllm_dllm.compat.flash_attention import keep_flash_attention_3
from vllm_dllm.worker.model_runner import DenoisingModelRunner


class DenoisingGPUWorker(Worker):
    def _make_model_runner(self) -> DenoisingModelRunner:
        size_attention_for_rows()
        keep_flash_attention_3()
        return DenoisingModelRunner(self.vllm_config, self.device)
