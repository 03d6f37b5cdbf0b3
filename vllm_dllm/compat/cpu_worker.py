"""The worker of vLLM for CPU that runs our model runner.

Nothing but a worker on CPU may import this: vLLM's own module of it puts what a CPU has
in the place of torch's streams, events and pinned memory, for the whole process.
"""

import os
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.v1.worker import gpu_worker
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_dllm.compat import arithmetic
from vllm_dllm.compat.adapters import leave_base_rows_alone
from vllm_dllm.compat.attention import size_attention_for_rows
from vllm_dllm.compat.triton import claiming_triton, replace_cpu_kernels
from vllm_dllm.compat.weights import pack_new_experts, pack_tied_heads
from vllm_dllm.orphans import forget_openmp
from vllm_dllm.worker.model_runner import DenoisingCPUModelRunner

logger = init_logger("vllm.dllm")  # in vLLM's tree, or nobody sees it
SHARED_MEMORY = Path("/dev/shm")


def forget_shared_memory() -> None:
    """Take away the names of the memory by which ranks on CPU reach one another.

    All ranks have it by now; with its name it would outlive a rank that is killed.
    """
    identity = os.environ["VLLM_DIST_IDENT"]
    for path in SHARED_MEMORY.glob(f"{identity}-*-cpushm_*"):
        path.unlink(missing_ok=True)


class DenoisingCPUWorker(CPUWorker):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # vLLM 0.33 looks for Triton here, before the kernels are replaced.
        with claiming_triton(gpu_worker):
            super().__init__(*args, **kwargs)

    def init_device(self) -> None:
        replace_cpu_kernels()
        leave_base_rows_alone()
        size_attention_for_rows()
        pack_new_experts()
        pack_tied_heads()
        super().init_device()
        forget_shared_memory()
        forget_openmp(os.getpid())
        # CPUWorker has no seam for the runner and names its class in init_device. The
        # two hold the same attributes and differ in methods alone.
        self.model_runner.__class__ = DenoisingCPUModelRunner
        if self.rank == 0 and self.model_config.quantization is None:
            name = str(self.model_config.dtype).removeprefix("torch.")
            if said := arithmetic.advice(name, arithmetic.speeds()):
                logger.info(said)
