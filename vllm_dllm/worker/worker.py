"""Workers of vLLM that run our model runner; one class per platform."""

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from vllm_dllm import compat
from vllm_dllm.worker.model_runner import (
    DenoisingCPUModelRunner,
    DenoisingModelRunner,
)


class DenoisingGPUWorker(Worker):
    def _make_model_runner(self) -> DenoisingModelRunner:
        compat.size_attention_for_rows()
        return DenoisingModelRunner(self.vllm_config, self.device)


class DenoisingCPUWorker(CPUWorker):
    def init_device(self) -> None:
        compat.replace_cpu_kernels()
        compat.leave_base_rows_alone()
        compat.size_attention_for_rows()
        super().init_device()
        # CPUWorker has no seam for the runner and names its class in init_device. The
        # two hold the same attributes and differ in methods alone.
        self.model_runner.__class__ = DenoisingCPUModelRunner
