"""What vLLM's inner parts look like, for the tables of tests/compat/test_contract.py.

python -m tests.contract    writes the table of the installed vLLM
"""

import hashlib
import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

from vllm_dllm import compat
from vllm_dllm.compat.symbols import names_in, place_of
from vllm_dllm.ops.runner_kernels import KERNELS

FOLDER = Path(__file__).with_name("contracts")


def path_of_installed() -> Path:
    release = Version(version("vllm")).release
    return FOLDER / f"vllm-{'.'.join(map(str, release[:2]))}.json"


def original(symbol: str) -> Any:
    """What vLLM itself has there, below our wrappers."""
    owner, name = place_of(symbol)
    raw = vars(owner)[name]
    raw = getattr(raw, "__func__", getattr(raw, "fget", raw))
    return inspect.unwrap(raw) if callable(raw) else raw


def described(value: Any) -> str:
    """A function's parameters, and a hash of its source or of that of a class."""
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return type(value).__name__
    digest = hashlib.sha256(inspect.getsource(value).encode()).hexdigest()[:12]
    if inspect.isclass(value):
        return f"class {digest}"
    return f"({', '.join(inspect.signature(value).parameters)}) {digest}"


def kernel_parameters(kernel: str) -> list[str]:
    """Of one of vLLM's Triton kernels, which need no Triton to be read."""
    module, _, name = kernel.rpartition(".")
    node: Any = names_in(module)[name]
    return [argument.arg for argument in node.args.args]


def contract() -> dict[str, dict[str, str]]:
    return {
        "symbols": {
            symbol: described(original(symbol))
            for symbol in sorted(compat.PRIVATE_SYMBOLS)
        },
        "kernels": {
            kernel: f"({', '.join(kernel_parameters(kernel))})"
            for kernel in sorted(KERNELS)
        },
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    path_of_installed().write_text(json.dumps(contract(), indent=1) + "\n")
