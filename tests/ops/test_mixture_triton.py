"""The kernel of soft embeddings on a machine without a GPU: interpreted, and compiled.

The interpreter is chosen when Triton is imported, so the tests of test_mixture.py run
again in a process of their own.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ops.test_candidate_triton import compiled, run_interpreted

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed"
)


def test_the_kernel_answers_as_the_reference() -> None:
    """A kernel that only a GPU can run is first run by a user."""
    assert run_interpreted(Path(__file__).with_name("test_mixture.py")) >= 26


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_compiles_for_every_generation_of_gpu(
    capability: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes what the compiler refuses."""
    from vllm_dllm.ops import mixture_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled(
        mixture_triton._mix_rows,
        {
            "embeddings_ptr": f"*{dtype}",
            "row_stride": "i32",
            "masks_ptr": f"*{dtype}",
            "mask_stride": "i32",
            "share_ptr": "*fp32",
            "hidden": "i32",
        },
        {"WIDTH": 2048},
        capability,
        num_warps=8,
    )
