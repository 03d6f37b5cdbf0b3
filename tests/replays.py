"""CUDA graphs of the whole model, replayed by hand where there is no GPU.

A graph reads at each replay what lies in the tensors that it was captured with. So here
vLLM's own capture makes its forward over a dummy batch, and a replay calls that forward
again: what a step has in other tensors, it does not see. The numbers that attention on
CPU derives from lengths, which a kernel on a GPU derives itself, are made anew.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.config.compilation import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.worker.gpu.cudagraph_utils import (
    BatchExecutionDescriptor,
    CudaGraphManager,
    ModelCudaGraphManager,
)


class Replay:
    """What stands for a `torch.cuda.CUDAGraph`."""

    def __init__(self, forward: Callable[[CUDAGraphMode], None]) -> None:
        self.forward = forward

    def replay(self) -> None:
        self.forward(CUDAGraphMode.NONE)


class ByHand(CudaGraphManager):
    def capture(self, create_forward_fn: Callable[..., Any], *args: Any) -> None:
        for desc in self._capture_descs[CUDAGraphMode.FULL]:
            self.graphs[desc] = Replay(create_forward_fn(desc, warmup=False))
            self.graphs[desc].replay()
        self._graphs_captured = True


class Replays(ModelCudaGraphManager, ByHand):
    """vLLM's manager of graphs; counts what it is asked for."""

    asked: list[tuple[int, BatchExecutionDescriptor]]
    """Number of requests, and what the step was given."""

    def dispatch(self, num_reqs: int, *args: Any, **kwargs: Any) -> Any:
        desc = super().dispatch(num_reqs, *args, **kwargs)
        self.asked.append((num_reqs, desc))
        return desc


@contextmanager
def replayed(engine: Any, rows: list[int]) -> Iterator[Replays]:
    """The engine, which runs in this process, with graphs of so many rows."""
    [worker] = engine.llm.collective_rpc(lambda worker: worker)
    runner = worker.model_runner
    block = runner.decode_query_len
    compilation = runner.compilation_config
    [[group]] = runner.attn_groups
    builder = group.get_metadata_builder()
    attend = ops.cpu_attention_with_kv_cache

    def attend_anew(**given: Any) -> None:
        given["scheduler_metadata"] = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(given["seq_lens"]),
            num_heads=builder.num_heads,
            num_kv_heads=builder.num_kv_heads,
            head_dim=builder.head_dim,
            seq_lens=given["seq_lens"],
            dtype=builder.dtype,
            query_start_loc=given["query_start_loc"],
            causal=given["causal"],
            sliding_window_size=builder.window_size,
            isa=builder.isa,
            enable_kv_split=False,
        )
        attend(**given)

    with pytest.MonkeyPatch.context() as patch:
        sizes = [block * number for number in rows]
        sizes = [size for size in sizes if size <= runner.max_num_tokens]
        patch.setattr(compilation, "cudagraph_capture_sizes", sizes)
        patch.setattr(compilation, "max_cudagraph_capture_size", max(sizes))
        patch.setattr(type(current_platform), "get_global_graph_pool", lambda self: 0)
        patch.setattr(ops, "cpu_attention_with_kv_cache", attend_anew)
        mode = CUDAGraphMode.FULL_DECODE_ONLY
        manager = Replays(runner.vllm_config, runner.device, mode, block)
        manager.asked = []
        with torch.inference_mode():
            manager.capture(
                runner.model,
                runner.model_state,
                runner.input_buffers,
                runner.intermediate_tensors,
                runner.block_tables,
                runner.attn_groups,
                runner.kv_cache_config,
            )
        patch.setattr(runner, "cudagraph_manager", manager)
        yield manager
