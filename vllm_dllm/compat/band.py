"""The versions of vLLM that this is known to fit."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet
from packaging.version import Version

SUPPORTED = SpecifierSet(">=0.32,<0.34")


def is_supported() -> bool:
    """Whether the installed vLLM is in the band that this plugin was tested with."""
    try:
        return SUPPORTED.contains(Version(version("vllm")), prereleases=True)
    except PackageNotFoundError:
        return False
