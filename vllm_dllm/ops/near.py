"""Small arrays where the work is: numpy's in the host's memory, torch's elsewhere.

What both have in common does the same. On a few numbers numpy takes a quarter of the
time; on a device nothing waits for it.
"""

from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

Array = Any
"""`np.ndarray` or `torch.Tensor`."""


def near(tensor: torch.Tensor) -> Array:
    """The same memory, of which numpy knows the type."""
    return tensor.numpy() if tensor.is_cpu else tensor


def brought(array: np.ndarray, device: torch.device) -> Array:
    """An array of the host's."""
    return array if device.type == "cpu" else async_tensor_h2d(array, device)


def unpacked(words: np.ndarray, length: int, device: torch.device) -> Array:
    """[rows, length] bool: bits, the lowest of each word first.

    words: [rows, n] of an integer type, on the host, with at least as many bits, or
        fewer: the rest are no.
    """
    bits = brought(words.view(np.uint8), device)
    if isinstance(bits, np.ndarray):
        found = np.unpackbits(bits, axis=1, count=length, bitorder="little")
        return found.view(np.bool_)
    place = torch.arange(8, dtype=torch.uint8, device=device)
    found = (bits.unsqueeze(2) >> place & 1).bool().flatten(1)[:, :length]
    return torch.nn.functional.pad(found, (0, length - found.shape[1]))


def picked(table: Array, column: Array) -> Array:
    """[n, m]: from each row of `table` those in its columns; column: [n, m] int64."""
    if isinstance(table, np.ndarray):
        return np.take_along_axis(table, column, axis=1)
    return table.gather(1, column)


def searchsorted(values: Array, wanted: Array) -> Array:
    """Where each of `wanted` is in sorted `values`."""
    library = np if isinstance(values, np.ndarray) else torch
    return library.searchsorted(values, wanted)
