"""What a step of a LLaDA2 must at least take: bytes and operations over their rates."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

BYTES = 2
"""Of a weight, a key or a value: bfloat16."""
Config = dict[str, Any]


def layer_weights(config: Config) -> tuple[int, int, int]:
    """Weights of one layer's attention, of a dense MLP, of one expert."""
    hidden, head = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    attention = hidden * head * (2 * heads + 2 * kv_heads)
    dense = 3 * hidden * config["intermediate_size"]
    return attention, dense, 3 * hidden * config["moe_intermediate_size"]


def experts_touched(config: Config, rows: int) -> float:
    """Of a layer, if each row picks its experts evenly and by itself."""
    experts = config["num_experts"]
    missed = (1 - config["num_experts_per_tok"] / experts) ** rows
    return experts * (1 - missed)


def weights_read(config: Config, experts: float) -> float:
    """Weights that a forward needs with so many experts in each layer.

    Of the embedding only a row for each token is read, which is not counted.
    """
    attention, dense, expert = layer_weights(config)
    layers, first = config["num_hidden_layers"], config["first_k_dense_replace"]
    router = config["hidden_size"] * config["num_experts"]
    sparse = (experts + config["num_shared_experts"]) * expert + router
    head = config["hidden_size"] * config["vocab_size"]
    return layers * attention + first * dense + (layers - first) * sparse + head


def floor(
    config: Config, rows: int, keys: int, copy_rate: float, matmul_rate: float
) -> dict[str, Any]:
    """The time of a step, and which of its two parts it is.

    Args:
        rows: positions forwarded, in all requests.
        keys: cached positions that are read, in all requests.
        copy_rate: bytes per second, read and written ones counted.
        matmul_rate: operations per second.
    """
    touched = experts_touched(config, rows)
    kv = 2 * config["num_key_value_heads"] * config["head_dim"]
    read = BYTES * (
        weights_read(config, touched) + keys * kv * config["num_hidden_layers"]
    )
    active = weights_read(config, config["num_experts_per_tok"])
    memory, arithmetic = read / copy_rate, 2 * rows * active / matmul_rate
    return {
        "experts": touched,
        "gigabytes": read / 1e9,
        "floor_ms": 1000 * max(memory, arithmetic),
        "bound": "memory" if memory > arithmetic else "arithmetic",
    }


def median_seconds(
    work: Callable[[], object], device: torch.device, repeats: int = 20
) -> float:
    """By events of the device where it has them, after three runs to warm up."""
    for _ in range(3):
        work()
    if device.type == "cpu":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in pairwise(events)]
    return statistics.median(times) / 1000


def copy_rate(device: torch.device) -> float:
    """Bytes per second of a large copy, read and written ones counted."""
    size = (1 << 22) if device.type == "cpu" else (1 << 31)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device) -> float:
    """Operations per second of a large bfloat16 product of random numbers."""
    size = 256 if device.type == "cpu" else 8192
    left, right = (
        torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2)
    )
    return 2 * size**3 / median_seconds(lambda: left @ right, device)
