"""A linear layer in int8: a scale for each output and for each row of inputs."""

from typing import Any

import torch
from vllm.model_executor.kernels.linear import init_int8_linear_kernel
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    initialize_online_processing,
)
from vllm.model_executor.parameter import ModelWeightParameter
from vllm.model_executor.utils import replace_parameter
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_dllm.ops.heap import give_back
from vllm_dllm.ops.int8_groups import quantize


class Int8LinearMethod(LinearMethodBase):
    """vLLM's own kernel for int8, on weights that are quantized as they arrive.

    A layer's weights have no memory before all of them are read; then they are made
    int8, and let go.
    """

    uses_meta_device = True
    """So that vLLM's loader processes each layer once it is read."""

    def __init__(self) -> None:
        self.kernel = init_int8_linear_kernel(
            is_channelwise=True,
            is_static_input_scheme=False,
            input_symmetric=True,
            module_name=type(self).__name__,
        )

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        shape = (sum(output_partition_sizes), input_size_per_partition)
        weight = ModelWeightParameter(
            data=torch.empty(shape, dtype=params_dtype, device="meta"),
            input_dim=1,
            output_dim=0,
            weight_loader=extra_weight_attrs["weight_loader"],
        )
        layer.register_parameter("weight", weight)
        initialize_online_processing(layer)

    def process_weights_after_loading(self, layer: Any) -> None:
        # vLLM calls it as soon as the layer is read, and once more for all layers.
        if getattr(layer, "_already_called_process_weights_after_loading", False):
            return
        rows = quantize(layer.weight)
        self.let_go(layer.weight)
        replace_parameter(layer, "weight", rows.values)
        # The kernel has its address alone, and vLLM puts another in the place of the
        # parameter when weights are loaded again.
        layer.kernels_scale = rows.scale
        replace_parameter(layer, "weight_scale", rows.scale.unsqueeze(1))
        layer.logical_widths = [
            len(rows.values)
        ]  # scales are of rows, whatever is fused
        layer.input_scale = layer.input_zero_point = layer.azp_adj = None
        with set_default_torch_dtype(layer.params_dtype):
            self.kernel.process_weights_after_loading(layer)
        if layer.weight is None:  # the kernel has its own; adapters ask for the device
            empty = rows.values.new_empty(0)
            layer.weight = torch.nn.Parameter(empty, requires_grad=False)
        give_back()
        layer._already_called_process_weights_after_loading = True

    def let_go(self, weight: torch.Tensor) -> None:
        """Free what was quantized: vLLM's loader still holds the parameter."""
        weight.data = weight.new_empty(0)

    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.kernel.apply_weights(layer, x, bias)


class Int8TiedHeadMethod(Int8LinearMethod):
    """A head that is the embedding too, which stays as it is for those who look up.

    What it multiplies with is a copy of a quarter to a half of the size.
    """

    uses_meta_device = False

    def create_weights(self, layer: torch.nn.Module, *shape: Any, **known: Any) -> None:
        UnquantizedEmbeddingMethod().create_weights(layer, *shape, **known)

    def let_go(self, weight: torch.Tensor) -> None:
        """It is the embedding's too."""


class EmbeddingMethod(UnquantizedEmbeddingMethod):
    """A table as it is, without the copy of it that vLLM packs for a CPU, where a head
    may be the same table: here no head multiplies with it."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        pass
