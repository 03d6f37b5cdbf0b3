"""Whether this machine's torch and vLLM's CUDA build go together, in seconds.

python tools/gpu_fit.py torch    is there a GPU, and a torch that vLLM's build can use
python tools/gpu_fit.py build    do vLLM's compiled libraries find what they need in it
python tools/gpu_fit.py vllm     can vLLM and the plugin be imported
"""

import ctypes
import os
import sys
from pathlib import Path

TORCH = (2, 11)
"""The first torch whose stable interface vLLM 0.32's libraries use."""
CUDA = "13"
"""The CUDA that its wheels are built for."""


def check_torch() -> str:
    import torch

    found = f"torch {torch.__version__}"
    numbers = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if torch.version.cuda is None:
        return refuse(f"{found} is a build without CUDA")
    if numbers < TORCH or torch.version.cuda.split(".")[0] != CUDA:
        return refuse(
            f"{found} of CUDA {torch.version.cuda}: vLLM's build needs torch "
            f"{'.'.join(map(str, TORCH))} or later of CUDA {CUDA}"
        )
    if not torch.cuda.is_available():
        return refuse(f"{found} sees no GPU")
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return f"{found}, CUDA {torch.version.cuda}, {name}, capability {capability}"


def check_build() -> str:
    import torch  # noqa: F401  its libraries have to be there first

    libraries = sorted(Path(os.environ["SITE"], "vllm").glob("*_C*.so"))
    if not libraries:
        return refuse(f"no compiled library of vLLM in {os.environ['SITE']}")
    for library in libraries:
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return refuse(f"{library.name} does not fit this torch: {error}")
    return f"{len(libraries)} libraries of vLLM fit this torch"


def check_vllm() -> str:
    import vllm
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from vllm import ModelRegistry

    if current_platform.device_type != "cuda":
        return refuse(f"vLLM takes this for a {current_platform.device_type} platform")
    if "SDARForCausalLM" not in ModelRegistry.get_supported_archs():
        return refuse("vLLM does not find the plugin: install this project")
    return f"vLLM {vllm.__version__} with the plugin"


def refuse(reason: str) -> str:
    sys.exit(f"does not fit: {reason}")


if __name__ == "__main__":
    print(globals()[f"check_{sys.argv[1]}"](), flush=True)
