"""Triton kernels as Python: each program of a grid runs its text on NumPy arrays.

As much of Triton's language as the kernels of the runner use.
"""

import functools
import itertools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu import buffer_utils


class Block(np.ndarray):
    """A loaded value; a scalar is zero-dimensional."""

    def to(self, dtype: np.dtype) -> "Block":
        return self.astype(dtype)


class Pointer:
    def __init__(self, memory: np.ndarray, offset: Any = 0) -> None:
        self.memory, self.offset = memory, offset

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.memory, self.offset + np.asarray(offset, np.int64))

    def __sub__(self, offset: Any) -> "Pointer":
        return self + -np.asarray(offset, np.int64)


class Interpreter(types.SimpleNamespace):
    """Stands in for `triton.language`; `tensors` holds what raw addresses mean."""

    constexpr = int64 = int32 = np.int64
    arange, where, range = staticmethod(np.arange), staticmethod(np.where), range
    program: tuple[int, ...]
    grid: tuple[int, ...]

    def program_id(self, axis: int) -> int:
        return self.program[axis]

    def num_programs(self, axis: int) -> int:
        return self.grid[axis]

    def load(self, pointer: Pointer, mask: Any = True, other: int = 0) -> Block:
        mask = np.broadcast_to(mask, np.shape(pointer.offset))
        out = np.full(mask.shape, other, pointer.memory.dtype)
        out[mask] = pointer.memory[np.asarray(pointer.offset)[mask]]
        return out.view(Block)

    def store(self, pointer: Pointer, value: Any, mask: Any = True) -> None:
        mask = np.broadcast_to(mask, np.shape(pointer.offset))
        value = np.broadcast_to(value, mask.shape)
        pointer.memory[np.asarray(pointer.offset)[mask]] = value[mask]

    def pointer_type(self, dtype: Any) -> None:
        return None

    def cast(self, address: Block, _: None) -> Pointer:
        return pointer_to(self.tensors[int(address)])

    def multiple_of(self, pointer: Pointer, _: int) -> Pointer:
        return pointer


def pointer_to(tensor: torch.Tensor) -> Pointer:
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = tensor.as_strided((size - tensor.storage_offset(),), (1,))
    return Pointer(flat.numpy())


class Interpreted:
    """A Triton kernel whose programs run one after the other in Python."""

    def __init__(self, kernel: Any, tensors: dict[int, torch.Tensor]) -> None:
        self.tl = Interpreter(tensors=tensors)
        text = getattr(kernel, "fn", kernel)  # .fn where a real Triton is installed
        scope = text.__globals__ | {"tl": self.tl}
        if "_load_ptr" in scope:
            load_ptr = getattr(buffer_utils._load_ptr, "fn", buffer_utils._load_ptr)
            scope["_load_ptr"] = types.FunctionType(load_ptr.__code__, scope)
        self.run = types.FunctionType(
            text.__code__, scope, text.__name__, text.__defaults__
        )

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return functools.partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        kwargs.pop("num_warps", None)
        self.tl.grid = grid
        args = tuple(
            pointer_to(arg) if isinstance(arg, torch.Tensor) else arg for arg in args
        )
        for self.tl.program in itertools.product(*map(range, grid)):
            self.run(*args, **kwargs)
