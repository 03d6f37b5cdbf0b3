"""The Triton kernels on a machine without a GPU: interpreted, and compiled for some.

The interpreter is chosen when Triton is imported, so the tests of test_candidate.py run
again in a process of their own.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).with_name("test_candidate.py")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_answer_as_the_reference() -> None:
    """A kernel that only a GPU can run is first run by a user."""
    assert run_interpreted(TESTS) >= 60


def run_interpreted(tests: Path) -> int:
    """Run those of a file that are about Triton; how many passed."""
    # -1: not even on a machine with a GPU.
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", str(tests)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed, ran.stdout
    assert "skipped" not in ran.stdout, ran.stdout
    return int(passed[1])


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("measures", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernels_compile_for_every_generation_of_gpu(
    capability: int,
    dtype: str,
    measures: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The interpreter takes what the compiler refuses, or reads one logit at a time."""
    from vllm_dllm.ops import candidate_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    reduce = compiled(
        candidate_triton._reduce_slices,
        {
            "logits_ptr": f"*{dtype}",
            "row_stride": "i32",
            "vocab": "i32",
            "mask_token_id": "i32",
            "values_ptr": "*fp32",
            "ids_ptr": "*i32",
            "size": "i32",
        },
        {"SLICE": candidate_triton.SLICE, "MEASURES": measures},
        capability,
        num_warps=8,
    )
    assert "ld.global.v4.b32" in reduce
    compiled(
        candidate_triton._join_slices,
        {
            "values_ptr": "*fp32",
            "ids_ptr": "*i32",
            "num_slices": "i32",
            "num_rows": "i32",
            "token_ptr": "*i64",
            "found_ptr": "*fp32",
        },
        {"SLICES": 64, "MEASURES": measures},
        capability,
        num_warps=1,
    )


def compiled(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    num_warps: int,
) -> str:
    """PTX of the kernel, for which machine code could be made as well.

    As at a launch, where sizes that 16 divides let loads be wide ones.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    sixteen = [["tt.divisibility", 16]]
    aligned = {
        (index,): sixteen
        for index, parameter in enumerate(kernel.params)
        if not (parameter.is_constexpr or parameter.do_not_specialize)
    }
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget("cuda", capability, warp_size=32)
    made = compile(source, target, {"num_warps": num_warps})
    assert made.asm["cubin"]
    return str(made.asm["ptx"])


def test_the_kernels_are_not_imported_with_the_package() -> None:
    """Where Triton is missing, nothing of the package could be imported."""
    code = "import sys; sys.modules['triton'] = None; import vllm_dllm.ops.candidate"
    subprocess.run([sys.executable, "-c", code], check=True)
