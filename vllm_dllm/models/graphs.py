"""CUDA graphs of whole blocks: how many blocks they are captured for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

MOST_POSITIONS = 4096
"""128 blocks of 32, the largest batch of benchmarks/gpu.py. Each size takes time to
capture, and memory."""
SHARE = 8
"""A step is padded with less than about one part in so many."""


def capture_whole_blocks(vllm_config: "VllmConfig", block: int) -> None:
    """Say for how many positions graphs are captured, where the user does not.

    vLLM's own sizes are for requests of one position each and end at 512.
    """
    compilation = vllm_config.compilation_config
    if compilation.max_cudagraph_capture_size is not None:
        return
    if compilation.cudagraph_capture_sizes is None:
        scheduler = vllm_config.scheduler_config
        most = min(MOST_POSITIONS, scheduler.max_num_batched_tokens) // block
        # A graph has no more rows than there may be requests.
        rows = numbers_of_blocks(max(1, min(most, scheduler.max_num_seqs)))
        compilation.cudagraph_capture_sizes = [block * number for number in rows]


def numbers_of_blocks(most: int) -> list[int]:
    """1, 2, 3, ... up to `most`, in steps that grow with them."""
    numbers = [1]
    while numbers[-1] < most:
        last = numbers[-1]
        numbers.append(min(most, last + max(1, last // SHARE)))
    return numbers
