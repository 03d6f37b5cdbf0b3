"""The plugin's entry point: what is added to vLLM, in order.

vLLM calls `register` in every process: the server, the engine, each worker and the
subprocess that inspects models. It must be cheap, safe to repeat, and must not raise.
"""

import logging

from vllm_dllm import compat

logger = logging.getLogger("vllm.dllm")


def register() -> None:
    """Add our models, flags and checks to vLLM."""
    if not compat.is_supported():
        logger.warning(
            "vllm-dllm supports vLLM %s; it has no effect on this one.",
            compat.SUPPORTED,
        )
        return
    register_models()
    compat.register_configs()
    compat.read_configs_by_architecture()
    compat.open_v2_gate()
    compat.replace_request_validation()
    compat.allow_structured_outputs()
    compat.allow_suffixes()
    compat.lift_request_fields()
    compat.check_request_lengths()
    compat.refuse_unknown_tokens()
    compat.follow_tool_schemas()
    compat.report_forwards()
    compat.add_cli_flags()
    compat.add_stop_tokens()
    compat.raise_token_budget()
    compat.refuse_unused_flags()


def register_models() -> None:
    from vllm import ModelRegistry

    from vllm_dllm.models.registry import FAMILIES

    for architecture, family in FAMILIES.items():
        ModelRegistry.register_model(architecture, family.model)
