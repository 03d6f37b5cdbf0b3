"""Which arithmetic is the fastest on this CPU, measured when a worker starts."""

import time
from collections.abc import Callable

import torch
from vllm import _custom_ops

ROWS, WIDTH = 32, 1024
"""Rows of a step of one request, or of a few, and the size of a small layer."""
REPEATS = 5
MUCH = 1.3
"""Times as fast as what is used: less is not worth a word."""
FLAGS = {
    "bfloat16": "--dtype bfloat16",
    "float32": "--dtype float32",
    "int8": "--quantization dllm_int8",
}


def speeds() -> dict[str, float]:
    """Products a second of a linear layer, on vLLM's kernels and with the threads that
    the process has, by the name of what is multiplied. Takes some milliseconds; nothing
    where this build of vLLM has no such kernels."""
    if not _custom_ops._supports_onednn:
        return {}
    weight, x = torch.randn(WIDTH, WIDTH), torch.randn(ROWS, WIDTH)
    work = {
        "bfloat16": of_floats(weight.bfloat16(), x.bfloat16()),
        "float32": of_floats(weight, x),
        "int8": of_int8(weight, x.bfloat16()),
    }
    return {name: ROWS * WIDTH**2 / shortest(call) for name, call in work.items()}


def of_floats(weight: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    handler = _custom_ops.create_onednn_mm(weight.t(), ROWS)
    return lambda: _custom_ops.onednn_mm(handler, x, None)


def of_int8(weight: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    whole, scale = (weight * 9).to(torch.int8), torch.ones(WIDTH, 1)
    handler = _custom_ops.create_onednn_scaled_mm(
        whole.t(), scale, x.dtype, True, False, ROWS
    )

    def multiply() -> None:
        rows, scales, _ = _custom_ops.onednn_scaled_int8_quant(x, None, None, True)
        found = torch.empty(ROWS, WIDTH, dtype=x.dtype)
        _custom_ops.onednn_scaled_mm(handler, rows, found, scales, None, None, None)

    return multiply


def shortest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, the first of which does not count."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def advice(used: str, measured: dict[str, float]) -> str | None:
    """What is much faster than what is used, and how one has it; None if nothing is.

    Args:
        used: a name of `FLAGS`.
        measured: what `speeds` found.
    """
    own = measured.get(used)
    if own is None:
        return None
    faster = {n: speed / own for n, speed in measured.items() if speed > MUCH * own}
    if not faster:
        return None
    said = [
        f"{ratio:.1f} x the speed with {FLAGS[name]}" for name, ratio in faster.items()
    ]
    return f"Linear layers on this CPU, compared with {used}: {', '.join(said)}"
