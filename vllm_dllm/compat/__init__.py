"""Every place where we reach into vLLM, and the versions this is known to fit.

One function per patch: what goes wrong without it, and when it can be removed. Beside
it, or in `overrides.py`, stand the names of vLLM's that it needs. `register` looks for
all of them before it changes anything, and `tests/test_contract.py` compares what they
are with what they were, so that a vLLM upgrade names what went missing or changed.
"""

from vllm_dllm.compat.adapters import leave_base_rows_alone
from vllm_dllm.compat.attention import size_attention_for_rows
from vllm_dllm.compat.batches import answer_unreadable_lines
from vllm_dllm.compat.bodies import check_bodies
from vllm_dllm.compat.configs import (
    add_stop_tokens,
    read_configs_by_architecture,
    register_configs,
)
from vllm_dllm.compat.defaults import mark_defaults
from vllm_dllm.compat.drafts import fetch_no_drafts
from vllm_dllm.compat.fields import lift_request_fields, refuse_beam_search
from vllm_dllm.compat.flags import (
    add_cli_flags,
    fold_cli_flags,
    raise_token_budget,
    refuse_unused_flags,
)
from vllm_dllm.compat.flash_attention import keep_flash_attention_3
from vllm_dllm.compat.gaps import fill_gaps
from vllm_dllm.compat.lengths import check_request_lengths, remember_prompt_lengths
from vllm_dllm.compat.overlap import keep_async_scheduling
from vllm_dllm.compat.overrides import OVERRIDES
from vllm_dllm.compat.pages import share_final_pages
from vllm_dllm.compat.patch import Patch, apply
from vllm_dllm.compat.pieces import own_logprobs
from vllm_dllm.compat.shutdown import (
    end_answers,
    end_with_launcher,
    kill_waiting_ranks,
)
from vllm_dllm.compat.streams import add_to_chats, add_to_completions
from vllm_dllm.compat.symbols import is_there
from vllm_dllm.compat.tools import (
    follow_tool_schemas,
    keep_broken_calls_as_text,
    tell_parsers_of_the_model,
)
from vllm_dllm.compat.triton import open_v2_gate, replace_cpu_kernels
from vllm_dllm.compat.usage import carry_forwards, move_forwards, report_forwards
from vllm_dllm.compat.validation import (
    allow_structured_outputs,
    allow_suffixes,
    explain_dead_ends,
    replace_request_validation,
)
from vllm_dllm.compat.vocabulary import (
    refuse_unknown_tokens,
    refuse_unknown_tokens_early,
)
from vllm_dllm.compat.weights import (
    change_weights,
    pack_new_experts,
    pack_tied_heads,
)

EVERYWHERE: tuple[Patch, ...] = (
    read_configs_by_architecture,
    add_stop_tokens,
    open_v2_gate,
    replace_request_validation,
    allow_structured_outputs,
    explain_dead_ends,
    allow_suffixes,
    mark_defaults,
    check_bodies,
    answer_unreadable_lines,
    lift_request_fields,
    refuse_beam_search,
    fill_gaps,
    remember_prompt_lengths,
    check_request_lengths,
    refuse_unknown_tokens,
    refuse_unknown_tokens_early,
    tell_parsers_of_the_model,
    follow_tool_schemas,
    keep_broken_calls_as_text,
    report_forwards,
    carry_forwards,
    move_forwards,
    end_answers,
    end_with_launcher,
    kill_waiting_ranks,
    add_to_chats,
    add_to_completions,
    own_logprobs,
    add_cli_flags,
    fold_cli_flags,
    raise_token_budget,
    refuse_unused_flags,
    share_final_pages,
    fetch_no_drafts,
    keep_async_scheduling,
    change_weights,
)
"""Patches of every process that has the plugin; the model decides what they do."""

IN_WORKERS: tuple[Patch, ...] = (
    leave_base_rows_alone,
    size_attention_for_rows,
    keep_flash_attention_3,
    pack_new_experts,
    pack_tied_heads,
)
"""Patches of the workers of our models (`cpu_worker.py`, `gpu_worker.py`)."""

PRIVATE_SYMBOLS: tuple[str, ...] = tuple(
    dict.fromkeys(
        symbol
        for group in (
            register_configs.symbols,
            replace_cpu_kernels.symbols,
            *(patch.symbols for patch in EVERYWHERE + IN_WORKERS),
            *OVERRIDES.values(),
        )
        for symbol in group
    )
)
"""Names outside vLLM's documented plugin interfaces that we use, "module:attribute"."""


def missing() -> list[str]:
    """Those that the installed vLLM does not have."""
    return [symbol for symbol in PRIVATE_SYMBOLS if not is_there(symbol)]


def change_vllm() -> None:
    """Teach vLLM our configs and put the patches of every process in place."""
    register_configs()
    apply(EVERYWHERE)
