"""The plugin's entry point: what is added to vLLM, in order.

vLLM calls `register` in every process: the server, the engine, each worker and the
subprocess that inspects models. It must be cheap, safe to repeat, and must not raise:
an exception would end vLLM for every model.
"""

import logging

logger = logging.getLogger("vllm.dllm")


def register() -> None:
    """Add our models, flags and checks to vLLM: all of them, or none and a warning."""
    try:
        reason = add_to_vllm()
    except Exception as error:
        logger.debug("vllm-dllm could not be added", exc_info=True)
        reason = f"it could not be added ({type(error).__name__}: {error})"
    if reason:
        logger.warning("vllm-dllm has no effect: %s", reason)


def add_to_vllm() -> str | None:
    """Nothing, or why nothing was added."""
    from vllm_dllm.compat.band import SUPPORTED, is_supported

    if not is_supported():
        return f"it supports vLLM {SUPPORTED}, and this is another one"
    from vllm_dllm import compat

    step_back()
    if gone := compat.missing():
        return f"this vLLM lacks {', '.join(gone)}"
    compat.change_vllm()
    register_models()
    from vllm_dllm.quantization import config  # noqa: F401  vLLM knows it from here on

    return None


def step_back() -> None:
    """Leave to vLLM what it has come to serve itself."""
    from vllm import ModelRegistry

    from vllm_dllm.models.registry import FAMILIES

    for architecture, family in list(FAMILIES.items()):
        served = ModelRegistry.models.get(architecture)
        module = getattr(served, "module_name", None)
        if family.steps_back and module and not family.model.startswith(module):
            del FAMILIES[architecture]
            logger.info("%s is served by vLLM itself, not by vllm-dllm", architecture)


def register_models() -> None:
    from vllm import ModelRegistry

    from vllm_dllm.models.registry import FAMILIES

    for architecture, family in FAMILIES.items():
        ModelRegistry.register_model(architecture, family.model)
