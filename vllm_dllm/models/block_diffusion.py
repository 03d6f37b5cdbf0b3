"""What makes a vLLM model class a block-diffusion model: the state it asks for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_dllm.worker.model_state import DenoisingModelState


class BlockDiffusion:
    """Mixin. The layers stay vLLM's; attention rows come from the model state."""

    @staticmethod
    def get_model_state_cls() -> "type[DenoisingModelState]":
        from vllm_dllm.worker.model_state import DenoisingModelState

        return DenoisingModelState
