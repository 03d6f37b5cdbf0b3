"""Every place where we reach into vLLM, and the versions this is known to fit.

One function per patch: what goes wrong without it, why it is safe to call twice, when
it can be removed. `tests/test_compat.py` resolves each name in `PRIVATE_SYMBOLS`, so
that a vLLM upgrade names what went missing.
"""

from vllm_dllm.compat.adapters import leave_base_rows_alone
from vllm_dllm.compat.band import PRIVATE_SYMBOLS, SUPPORTED, is_supported
from vllm_dllm.compat.flags import (
    add_cli_flags,
    raise_token_budget,
    refuse_unused_flags,
)
from vllm_dllm.compat.models import (
    add_stop_tokens,
    open_v2_gate,
    read_configs_by_architecture,
    register_configs,
    replace_cpu_kernels,
    size_attention_for_rows,
)
from vllm_dllm.compat.requests import (
    allow_structured_outputs,
    allow_suffixes,
    check_request_lengths,
    lift_request_fields,
    replace_request_validation,
    report_forwards,
)
from vllm_dllm.compat.tools import follow_tool_schemas
from vllm_dllm.compat.vocabulary import refuse_unknown_tokens

__all__ = [
    "PRIVATE_SYMBOLS",
    "SUPPORTED",
    "add_cli_flags",
    "add_stop_tokens",
    "allow_structured_outputs",
    "allow_suffixes",
    "check_request_lengths",
    "follow_tool_schemas",
    "is_supported",
    "leave_base_rows_alone",
    "lift_request_fields",
    "open_v2_gate",
    "raise_token_budget",
    "read_configs_by_architecture",
    "refuse_unknown_tokens",
    "refuse_unused_flags",
    "register_configs",
    "replace_cpu_kernels",
    "replace_request_validation",
    "report_forwards",
    "size_attention_for_rows",
]
