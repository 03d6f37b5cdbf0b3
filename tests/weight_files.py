"""A transfer of weights that needs no GPU: a trainer that writes files.

vLLM's own move tensors between GPUs. What they do with those that arrived is this.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)


@dataclass
class Folder(WeightTransferInitInfo):
    """Where the trainer writes."""

    path: str


@dataclass
class Names(WeightTransferUpdateInfo):
    """Which tensors arrived."""

    names: list[str]


class FileTransfer(WeightTransferEngine[Folder, Names]):
    """Reads what it is told of from a folder's model.safetensors."""

    init_info_cls, update_info_cls = Folder, Names

    def init_transfer_engine(self, init_info: Folder) -> None:
        self.weights = load_file(Path(init_info.path) / "model.safetensors")

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Names) -> None:
        self.model.load_weights((n, self.weights[n]) for n in update_info.names)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self.weights = {}


def receive_files(wrapper: Any) -> None:
    """Let a worker receive weights in this way."""
    worker = wrapper.worker
    worker.weight_transfer_engine = FileTransfer(
        WeightTransferConfig(backend="files"),
        worker.vllm_config,
        worker.device,
        worker.get_model(),
    )
