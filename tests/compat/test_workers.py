"""Our workers where an executor starts them in processes that nobody prepared."""

import subprocess
import sys
from pathlib import Path

import cloudpickle

from tests.engine_config import engine_config
from vllm_dllm.compat.cpu_worker import DenoisingCPUWorker
from vllm_dllm.compat.gpu_worker import DenoisingGPUWorker
from vllm_dllm.config import DllmConfig

A_RAY_WORKER = """
import pickle, sys
from pathlib import Path
from vllm.v1.worker.worker_base import WorkerBase, WorkerWrapperBase

config, facts = pickle.loads(Path(sys.argv[1]).read_bytes())
wrapper = WorkerWrapperBase(rpc_rank=1, global_rank=1)
kwargs = {
    "vllm_config": config,
    "local_rank": 1,
    "rank": 1,
    "distributed_init_method": "tcp://127.0.0.1:1",
    "is_driver_worker": False,
}
wrapper.init_worker([{}, kwargs])
worker = wrapper.worker
assert type(worker).__name__ == "DenoisingCPUWorker", type(worker)
assert isinstance(worker, WorkerBase)

from vllm_dllm.config import DllmConfig
assert DllmConfig.of(worker.model_config) == facts
"""


def test_a_worker_needs_nothing_that_its_driver_alone_has(tmp_path: Path) -> None:
    """Ray's executor, which no CPU build of vLLM runs, sends a config to another node
    and finds the worker by its path there."""
    config = engine_config("sdar-pub1", additional_config={"dllm": {"threshold": 0.4}})
    facts = DllmConfig.of(config.model_config)
    assert facts.threshold == 0.4
    sent = tmp_path / "config.pickle"
    sent.write_bytes(cloudpickle.dumps((config, facts)))
    command = [sys.executable, "-c", A_RAY_WORKER, str(sent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_nothing_of_a_step_is_in_the_worker() -> None:
    """Ray's executor goes past it, to `worker.model_runner`."""
    for worker in (DenoisingCPUWorker, DenoisingGPUWorker):
        assert not {"execute_model", "sample_tokens"} & vars(worker).keys()


def test_a_worker_of_a_gpu_leaves_torchs_streams_and_pinned_memory() -> None:
    """vLLM's worker for CPU replaces them where it is imported: a kernel on the device
    would be given what lies in the memory of the host."""
    code = """
import torch
before = torch.cuda.Event, torch.cuda.Stream, torch.Tensor.pin_memory
import vllm_dllm.compat.gpu_worker
assert before == (torch.cuda.Event, torch.cuda.Stream, torch.Tensor.pin_memory)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
