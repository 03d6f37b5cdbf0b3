"""Builds the optional CPU extension; everything else is in pyproject.toml.

Without a compiler (or with DLLM_SKIP_NATIVE=1) the package installs all the same and
uses its torch implementations.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ABI = "cp311"


class OptionalBuildExt(build_ext):
    """build_ext that says what a failed optional extension means for the user."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            self.warn(
                f"could not build {ext.name} ({error}); vllm-dllm will use its slower "
                "torch implementations on CPU. Install a C++17 compiler with OpenMP "
                "and reinstall to get the native ones."
            )


openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
native = Extension(
    "vllm_dllm._C",
    sources=sorted(map(str, Path("csrc").glob("*.cpp"))),
    depends=["csrc/binding.h"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    extra_compile_args=[
        "-O3",
        "-g0",
        "-std=c++17",
        "-fno-math-errno",
        "-fno-trapping-math",
        *openmp,
    ],
    extra_link_args=openmp,
    py_limited_api=True,
    language="c++",
    optional=True,
)
skip = os.environ.get("DLLM_SKIP_NATIVE") == "1"

setup(
    ext_modules=[] if skip else [native],
    cmdclass={"build_ext": OptionalBuildExt},
    options={} if skip else {"bdist_wheel": {"py_limited_api": ABI}},
)
