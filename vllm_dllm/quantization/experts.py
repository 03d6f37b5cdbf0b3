"""Experts in int8 on a CPU: a scale for each output, and one for each row of inputs."""

from typing import Any

import torch
from torch.nn.functional import silu
from vllm.model_executor.layers.quantization.online.moe_base import OnlineMoEMethodBase
from vllm.model_executor.utils import replace_parameter

from vllm_dllm.ops.heap import give_back
from vllm_dllm.ops.int8_groups import Int8Rows, multiply_groups, quantize


class Int8ExpertsMethod(OnlineMoEMethodBase):
    """Experts that are quantized as they arrive, of gated SiLU and without biases."""

    def get_fused_moe_quant_config(self, layer: Any) -> None:
        """vLLM's kernels are not used."""
        return None

    def process_weights_after_loading(self, layer: Any) -> None:
        # vLLM calls it as soon as the layer is read, and once more for all layers.
        if getattr(layer, "_already_called_process_weights_after_loading", False):
            return
        for name in ("w13", "w2"):
            weight = getattr(layer, f"{name}_weight")
            rows = quantize(weight)
            weight.data = weight.new_empty(0)  # vLLM's loader still holds it
            replace_parameter(layer, f"{name}_weight", rows.values)
            replace_parameter(layer, f"{name}_scale", rows.scale)
            # One by one: those of all experts in int32 are large.
            sums = torch.stack([v.sum(dim=-1, dtype=torch.int32) for v in rows.values])
            replace_parameter(layer, f"{name}_sum", sums)
        give_back()
        layer._already_called_process_weights_after_loading = True

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any = None,
        shared_experts_input: Any = None,
    ) -> torch.Tensor:
        """What the chosen experts of each row add up to; vLLM adds the shared ones.

        Args:
            x: [rows, hidden].
            topk_weights, topk_ids: [rows, k].

        Returns:
            [rows, hidden], of the dtype of `x`.
        """
        chosen = topk_ids.flatten().long()
        share = topk_weights.flatten().float()
        if layer.expert_map is not None:  # those of other ranks are theirs to add
            chosen = layer.expert_map[chosen].long()
            share = torch.where(chosen < 0, 0, share)
            chosen = chosen.clamp(min=0)
        order = chosen.argsort()
        row = order // topk_ids.shape[1]
        counts = chosen.bincount(minlength=len(layer.w13_weight))
        rows = quantize(x)
        found = multiply_groups(
            Int8Rows(rows.values[row], rows.scale[row]), counts, *of(layer, "w13")
        )
        gate, up = found.chunk(2, dim=1)
        inner = quantize(silu(gate) * up)
        found = multiply_groups(inner, counts, *of(layer, "w2"))
        found *= share[order].unsqueeze(1)
        total = torch.zeros(x.shape, dtype=torch.float32)
        return total.index_add_(0, row, found).to(x.dtype)


def of(layer: Any, name: str) -> tuple[Int8Rows, torch.Tensor]:
    """The weights of all experts, and their sums."""
    weight, scale, sums = (
        getattr(layer, f"{name}_{part}") for part in ("weight", "scale", "sum")
    )
    return Int8Rows(weight, scale), sums
